"""The app over a real database: a context, all routes, a client, and people with keys."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI

from services.app.context import AppContext
from services.app.identity.caller import SCOPES, Caller
from services.app.identity.tables import ApiKeyRow, UserRow
from services.app.main import create_app, hooks
from services.app.projects.tables import MemberRow, ProjectRow
from services.assembly.access import access_in_process
from services.cluster.jobs import JOBS as CLUSTER_JOBS
from services.flow.jobs import JOBS as FLOW_JOBS
from services.flow.tasks.registry import find_all
from services.gateway.routes import Gateway
from services.gateway.routes import router as gateway_route
from services.gateway.table import RouteTable
from services.model.jobs import JOBS as MODEL_JOBS
from shared.clock import now
from shared.contracts.clusters import Orphan
from shared.contracts.deployments import DeploySpec
from shared.contracts.previews import DeployPreview
from shared.db.engine import Database
from shared.jobs.declare import Registry
from shared.jobs.feed import Feeds
from shared.jobs.hub import Hub
from shared.jobs.ledger import Ledger
from shared.objects import DirectoryStore
from shared.security import apikeys
from shared.security.envelope import Keyring
from shared.settings import Settings


class LogFiles:
    """The logs of workers as files: `<folder>/<endpoint>/<ordinal>.log`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def lines(
        self, cluster_id: UUID, endpoint_id: UUID, ordinal: int | None, tail: int, follow: bool
    ) -> AsyncIterator[str]:
        for file in sorted((self.folder / str(endpoint_id)).glob(f"{'*' if ordinal is None else ordinal}.log")):
            text = await asyncio.to_thread(file.read_text)
            for line in text.splitlines()[-tail:]:
                yield line


class NoClusters:
    """Registered clusters that have nothing of ours."""

    async def leftovers(self, cluster_id: UUID) -> list[Orphan]:
        return []

    async def identity(self, kubeconfig: bytes) -> str | None:
        return None

    async def preview(self, spec: DeploySpec) -> DeployPreview:
        return DeployPreview(problems=["There is nothing here."], code="insufficient_capacity")


@dataclass(frozen=True)
class Person:
    id: UUID
    key_id: UUID
    key: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


class People:
    """Makes users with a key, and projects, straight in the tables."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def project(self, name: str) -> UUID:
        project_id = uuid4()
        async with self.database.transaction() as session:
            session.add(ProjectRow(id=project_id, name=name))
        return project_id

    async def add(
        self,
        role: str,
        name: str | None = None,
        projects: dict[UUID, str] | None = None,
        scopes: tuple[str, ...] = SCOPES,
        only_project: UUID | None = None,
    ) -> Person:
        user = UserRow(id=uuid4(), name=name or f"{role}-{uuid4().hex[:8]}", role=role)
        async with self.database.transaction() as session:
            session.add(user)
            await session.flush()
            for project_id, membership in (projects or {}).items():
                session.add(MemberRow(project_id=project_id, user_id=user.id, role=membership))
        return await self.key_for(user.id, scopes, only_project)

    async def key_for(
        self, user_id: UUID, scopes: tuple[str, ...] = SCOPES, only_project: UUID | None = None
    ) -> Person:
        new = apikeys.new_key()
        key = ApiKeyRow(
            id=uuid4(), user_id=user_id, name="test", prefix=new.prefix, hash=new.hash, scopes=list(scopes),
            project_id=only_project, created_at=now(),
        )  # fmt: skip
        async with self.database.transaction() as session:
            session.add(key)
        return Person(user_id, key.id, new.plain)


def caller_for(person: Person, role: str, projects: dict[UUID, str] | None = None) -> Caller:
    return Caller(person.id, "test", role, person.key_id, frozenset(SCOPES), projects or {})


@pytest.fixture
async def app_context(database: Database, tmp_path: Path) -> AppContext:
    hub = Hub(database)
    registry = Registry()
    registry.add((*MODEL_JOBS, *CLUSTER_JOBS, *FLOW_JOBS), None)
    context = AppContext(
        settings=Settings(data_dir=tmp_path, rate_quota=100_000, allowed_hosts=["test"]),
        database=database,
        hub=hub,
        ledger=Ledger(database, hub),
        feeds=Feeds(database, hub),
        keyring=Keyring.load_or_create(tmp_path / "encryption-keys.json"),
        objects=DirectoryStore(tmp_path / "objects"),
        jobs=registry,
        logs=LogFiles(tmp_path / "logs"),
        clusters=NoClusters(),
        task_types=find_all(),
    )
    context.ledger.hooks = hooks(context)
    return context


@pytest.fixture
def routes() -> RouteTable:
    """What the gateway knows."""
    return RouteTable()


@pytest.fixture
async def app(app_context: AppContext, routes: RouteTable) -> AsyncIterator[FastAPI]:
    """The whole app with its gateway, as the assembly puts them together; no engine runs the jobs."""

    async def ready() -> list[str]:
        return []

    app = create_app(app_context, ready)
    gateway = Gateway(routes, access_in_process(app_context, app.state.authenticator, routes))
    app.router.routes.insert(0, gateway_route(gateway))
    yield app
    await gateway.aclose()


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Calls the app in this process, under the host name `test`, without a key."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def people(database: Database) -> People:
    return People(database)

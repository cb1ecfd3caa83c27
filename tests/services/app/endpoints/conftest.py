"""An endpoint whose model has files in the object store, and the app behind a real server."""

import asyncio
import contextlib
import hashlib
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import uvicorn

from services.app.context import AppContext
from services.app.endpoints.deploy import key_context
from services.app.endpoints.model_files import Limits, Transfers
from services.app.endpoints.tables import EndpointRow
from services.app.main import create_app
from services.app.models.tables import ModelRow
from services.assembly.access import access_in_process
from services.gateway.routes import Gateway
from services.gateway.routes import router as gateway_route
from services.gateway.table import RouteTable
from shared.contracts.models import Manifest, ModelFile
from shared.objects import DirectoryStore
from shared.objects.store import CHUNK, blob_key, manifest_key
from shared.security.loader_token import token_of
from tests.services.app import rows
from tests.services.app.conftest import People

MIB = 1024 * 1024
CONTENTS = {"config.json": b'{"a": 1}', "deep/weights.gguf": bytes(range(256)) * 32 * 1024, "empty": b""}


class SlowStore(DirectoryStore):
    """A directory that gives no more than `until` bytes of a file before `go` is set; `given` counts them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.until: int | None = None
        self.go = asyncio.Event()
        self.given = 0

    async def read(
        self, key: str, *, start: int = 0, length: int | None = None, chunk: int = CHUNK
    ) -> AsyncIterator[bytes]:
        given = 0
        async with contextlib.aclosing(super().read(key, start=start, length=length, chunk=chunk)) as data:  # type: ignore[type-var]  # an asynchronous generator
            async for part in data:
                if self.until is not None and given + len(part) > self.until:
                    await self.go.wait()
                given += len(part)
                self.given += len(part)
                yield part

    def overwrite(self, sha256: str, content: bytes) -> None:
        """As a disk does that has lost or changed bytes."""
        path = self.root / blob_key(sha256)
        path.unlink()
        path.write_bytes(content)

    def open_blobs(self) -> list[str]:
        """The blobs that this process has open."""
        found = []
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(link.readlink()))
        return [path for path in found if path.startswith(str(self.root / "blobs"))]


@dataclass
class Served:
    """An endpoint that may have `files`; `token` is the one in its workload's secret."""

    context: AppContext
    store: SlowStore
    id: UUID
    worker_key: str
    project_id: UUID
    model_id: UUID
    digest: str
    files: list[ModelFile]

    @property
    def token(self) -> str:
        return token_of(self.worker_key, self.id)

    @property
    def path(self) -> str:
        return f"/endpoints/{self.id}/model-files"

    @property
    def bearer(self) -> dict[str, str]:
        return bearer(self.token)

    async def change(self, **values: Any) -> None:
        async with self.context.database.transaction() as session:
            endpoint = await session.get(EndpointRow, self.id)
            for name, value in values.items():
                setattr(endpoint, name, value)

    async def delete_model(self) -> None:
        async with self.context.database.transaction() as session:
            model = await session.get(ModelRow, self.model_id)
            assert model is not None
            model.state = "deleted"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def stored(store: DirectoryStore, contents: dict[str, bytes]) -> tuple[str, list[ModelFile]]:
    """Puts files and their manifest into a store, as an import does."""
    files = []
    for path, content in sorted(contents.items()):
        sha256 = hashlib.sha256(content).hexdigest()
        scratch = store.scratch("test") / uuid4().hex
        scratch.write_bytes(content)
        await store.adopt(scratch, sha256)
        files.append(ModelFile(path=path, size=len(content), sha256=sha256))
    lines = "".join(f"{file.sha256}  {file.path}\n" for file in files)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    await store.put(manifest_key(digest), Manifest(digest=digest, files=files).model_dump_json().encode())
    return digest, files


@pytest.fixture
def store(app_context: AppContext, tmp_path: Path) -> SlowStore:
    app_context.objects = store = SlowStore(tmp_path / "objects")
    return store


async def make_served(
    context: AppContext, people: People, store: SlowStore, contents: dict[str, bytes] = CONTENTS
) -> Served:
    project_id, endpoint_id, worker_key = await people.project(uuid4().hex), uuid4(), secrets.token_urlsafe(32)
    digest, files = await stored(store, contents)
    model, cluster = rows.model(project_id=project_id, digest=digest), rows.cluster()
    endpoint = rows.endpoint(
        project_id, model.id, cluster.id, id=endpoint_id, digest=digest,
        sealed=context.keyring.seal(worker_key.encode(), key_context(endpoint_id)),
    )  # fmt: skip
    await rows.insert(context.database, model, cluster, endpoint)
    return Served(context, store, endpoint_id, worker_key, project_id, model.id, digest, files)


@pytest.fixture
async def served(app_context: AppContext, people: People, store: SlowStore) -> Served:
    return await make_served(app_context, people, store)


@dataclass
class Running:
    """The app behind uvicorn, as in production."""

    url: str
    transfers: Transfers

    async def idle(self) -> None:
        """Until no transfer runs."""
        async with asyncio.timeout(30):
            while self.transfers.running:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(
    context: AppContext, host: str = "127.0.0.1", limits: Limits | None = None, routes: RouteTable | None = None
) -> AsyncIterator[Running]:
    """The app, with its gateway over `routes`, at an address of this machine; it counts as the advertised one."""

    async def ready() -> list[str]:
        return []

    listener = socket.create_server((host, 0))
    url = f"http://{host}:{listener.getsockname()[1]}"
    context.settings = context.settings.model_copy(update={"advertised_url": url})
    app = create_app(context, ready)
    app.state.transfers = Transfers(limits)
    routes = routes or RouteTable()
    gateway = Gateway(routes, access_in_process(context, app.state.authenticator, routes))
    app.router.routes.insert(0, gateway_route(gateway))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=2))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.002)
    try:
        yield Running(url, app.state.transfers)
    finally:
        await gateway.aclose()
        server.should_exit = True
        await task


async def session_of(client: httpx.AsyncClient, served: Served) -> dict[str, str]:
    answer = await client.post(served.path, headers=served.bearer)
    assert answer.status_code == 200, answer.text
    return bearer(answer.json()["token"])

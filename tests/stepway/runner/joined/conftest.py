"""A real platform over HTTP that can be stopped and started again, and workflow servers that are joined to it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import text
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from services.app.context import AppContext
from services.app.main import create_app
from services.app.workflow_servers import service
from services.gateway.table import RouteTable
from stepway.runner.api import auth
from stepway.runner.config import Config
from stepway.runner.server import WorkflowServer
from stepway.runner.store import Store
from tests.services.app.conftest import People, Person, app_context, people, routes

__all__ = ["app_context", "people", "routes"]

PATIENCE = 30.0


class Greet(Workflow):
    @step
    async def greet(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=f"Hello, {ev.get('name', 'World')}!")


class Fail(Workflow):
    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        raise ValueError(ev.get("message"))


class Sleep(Workflow):
    """Goes on until it is cancelled."""

    ended: list[str]

    @step
    async def sleep(self, ev: StartEvent) -> StopEvent:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        return StopEvent()


async def until(look: Callable[[], Awaitable[Any]], what: str = "") -> Any:
    """Wait for something true; what it was."""
    async with asyncio.timeout(PATIENCE):
        while not (found := await look()):
            await asyncio.sleep(0.02)
    return found


class Site:
    """The platform on a port of its own."""

    def __init__(self, context: AppContext, people: People) -> None:
        self.context, self.people = context, people
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port: int = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app: FastAPI
        self.asked: list[str] = []  # method and path of each request
        self.project_id: UUID
        self.owner: Person
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        async def ready() -> list[str]:
            return []

        self.app = create_app(self.context, ready)
        asked = self.asked

        async def noted(scope: Any, receive: Any, send: Any) -> None:
            asked.append(f"{scope['method']} {scope['path']}")
            await self.app(scope, receive, send)

        config = uvicorn.Config(noted, "127.0.0.1", self.port, log_level="error", lifespan="off", ws="none")
        self._server = _Uvicorn(config)
        self._task = asyncio.create_task(self._server.serve())
        await until(self._is_up)

    async def _is_up(self) -> bool:
        assert self._server is not None
        return self._server.started

    async def stop(self) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = self._server.force_exit = True
            await self._task
            self._server = self._task = None

    async def get(self, path: str, **query: Any) -> Any:
        async with httpx.AsyncClient(base_url=self.url, headers=self.owner.headers, timeout=PATIENCE) as client:
            answer = await client.get(path, params=query)
            assert answer.status_code == 200, answer.text
            return answer.json()

    async def send(self, method: str, path: str, person: Person | None = None, **given: Any) -> httpx.Response:
        headers = (person or self.owner).headers
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=PATIENCE) as client:
            return await client.request(method, path, **given)

    async def servers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.get("/workflow-servers"))["data"]
        return found

    async def runs(self, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.get("/workflow-runs", limit=200, **query))["data"]
        return found

    async def run(self, handler_id: str, status: str | None = None) -> dict[str, Any]:
        """The run, once it is told, and is so."""

        async def look() -> dict[str, Any] | None:
            found = await self.runs(handler_id=handler_id)
            return next((one for one in found if status in (None, one["status"])), None)

        found: dict[str, Any] = await until(look)
        return found

    async def execute(self, statement: str, **values: Any) -> None:
        async with self.context.database.transaction() as session:
            await session.execute(text(statement), values)


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the test's."""
        yield


class Joined:
    """A workflow server that is joined to the site."""

    def __init__(self, site: Site, server: WorkflowServer, sleep: Sleep) -> None:
        self.site, self.server, self.sleep = site, server, sleep
        transport = httpx.ASGITransport(app=server.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", timeout=PATIENCE)

    @property
    def headers(self) -> dict[str, str]:
        return self.site.owner.headers

    async def ask(self, method: str, path: str, key: Person | None = None, **given: Any) -> httpx.Response:
        return await self.client.request(method, path, headers=(key or self.site.owner).headers, **given)

    async def run(self, name: str, handler_id: str, key: Person | None = None, /, **start: Any) -> httpx.Response:
        body = {"start_event": start, "handler_id": handler_id}
        path = f"/workflows/{name}/{'run-nowait' if name == 'sleep' else 'run'}"
        return await self.ask("POST", path, key, json=body)

    async def registered(self) -> None:
        async def look() -> bool:
            return (await self.ask("GET", "/workflows")).status_code == 200

        await until(look)


Join = Callable[..., Awaitable[Joined]]


@pytest.fixture
async def site(
    app_context: AppContext, people: People, routes: RouteTable, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    monkeypatch.setattr(service, "REPORT_EVERY", 0.1)
    monkeypatch.setattr(auth, "AWAY", 0.2)
    app_context.settings.allowed_hosts = ["127.0.0.1"]
    made = Site(app_context, people)
    made.project_id = await people.project(uuid4().hex)
    made.owner = await people.add("member", projects={made.project_id: "member"})
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def join(site: Site) -> AsyncIterator[Join]:
    """Makes servers that are joined; each is stopped at the end."""
    async with AsyncExitStack() as stack:

        async def made(store: Store | None = None, **values: Any) -> Joined:
            given = {"name": "flows", "port": 1, "platform_url": site.url, "platform_key": site.owner.key, "drain": 1.5}
            server = WorkflowServer(Config(**{**given, **values}), store=store)
            sleep = Sleep(timeout=None)
            sleep.ended = []
            for name, workflow in (("greet", Greet()), ("fail", Fail()), ("sleep", sleep)):
                server.add_workflow(name, workflow)
            joined = Joined(site, server, sleep)
            await stack.enter_async_context(joined.client)
            await stack.enter_async_context(server)
            return joined

        yield made

"""The server as an object: names, its life, and its app inside of another one."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from stepway.runner import WorkflowServer
from stepway.runner.store import StoreUnavailable
from stepway.runner.store.memory import MemoryStore
from tests.stepway.runner.api import flows
from tests.stepway.runner.api.conftest import free_socket, listening, served


@pytest.mark.parametrize("name", ["", "a/b", "..", " a", "a?b", "a\n", "x" * 201, "\ud800", "100%"], ids=range(9))
def test_a_name_that_cannot_stand_in_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        WorkflowServer().add_workflow(name, flows.Greeting())


def test_a_name_is_given_once() -> None:
    server = WorkflowServer()
    server.add_workflow("greet", flows.Greeting())
    with pytest.raises(ValueError, match="already"):
        server.add_workflow("greet", flows.Greeting())


async def test_names_of_all_scripts_are_served() -> None:
    server = WorkflowServer()
    server.add_workflow("größe 計", flows.Greeting())
    async with listening(server) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.post("/workflows/größe 計/run", json={})).status_code == 200
        assert (await http.get("/")).status_code == 200


@asynccontextmanager
async def mounted(app: Any, path: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """An app served by plain uvicorn, as somebody else would."""
    with free_socket() as free:
        running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        serving = asyncio.create_task(running.serve(sockets=[free]))
        while not running.started:
            await asyncio.sleep(0.02)
        base = f"http://127.0.0.1:{free.getsockname()[1]}{path}"
        async with httpx.AsyncClient(base_url=base, timeout=30) as http:
            yield http
        running.should_exit = True
        await serving


@pytest.mark.parametrize("kind", ["starlette", "fastapi"])
async def test_a_mounted_app_starts_at_the_first_request(kind: str) -> None:
    server = served()
    app: Any = FastAPI() if kind == "fastapi" else Starlette(routes=[Mount("/flows", server.app)])
    if kind == "fastapi":
        app.mount("/flows", server.app)
    async with mounted(app, "/flows") as http:
        assert not server.runs.started
        assert (await http.post("/workflows/greet/run", json={})).status_code == 200
        handler = (await http.post("/workflows/greet/run-nowait", json={"handler_id": "m"})).json()
        events = await http.get(f"/events/{handler['handler_id']}?after_sequence=-1")
        assert events.text.count("data: ") == 4
        assert (await http.get("/openapi.json")).json()["servers"] == [{"url": "/flows"}]
        page = await http.get("/")
        assert 'href="workflows/greet/schema"' in page.text
        assert (await http.get("/none")).status_code == 404
    await server.stop()


async def test_a_mounted_app_may_be_started_around() -> None:
    server = served()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with server:
            yield

    async with mounted(Starlette(routes=[Mount("/flows", server.app)], lifespan=lifespan), "/flows") as http:
        assert server.runs.started
        assert (await http.get("/health")).status_code == 200
    assert not server.runs.started


async def test_the_app_alone_has_a_life_of_its_own() -> None:
    server = served()
    async with mounted(server.app) as http:
        assert server.runs.started
        assert (await http.get("/health")).json() == {"status": "healthy"}
    assert not server.runs.started


class Broken(MemoryStore):
    """A store that is away until it is mended."""

    problem: str | None = "No connection"

    async def start(self, lost: Any) -> None:
        if self.problem is not None:
            raise StoreUnavailable(self.problem)

    async def healthy(self) -> str | None:
        return self.problem

    async def create(self, run: Any) -> Any:
        if self.problem is not None:
            raise StoreUnavailable(self.problem)
        return await super().create(run)


async def test_a_server_that_cannot_start_says_so_and_tries_again() -> None:
    store = Broken()
    server = served(store=store)
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        health = await http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        answer = await http.post("/workflows/greet/run", json={})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "No connection" in answer.json()["detail"]
        store.problem = None
        assert (await http.get("/health")).json() == {"status": "healthy"}
        assert (await http.post("/workflows/greet/run", json={})).status_code == 200
        store.problem = "The disk is full"
        health = await http.get("/health")
        assert (health.status_code, health.json()["detail"]) == (503, "The disk is full")
        refused = await http.post("/workflows/greet/run-nowait", json={})
        assert (refused.status_code, refused.json()) == (503, {"detail": "The disk is full"})
    await server.stop()


async def test_a_stopped_server_takes_nothing() -> None:
    server = served()
    await server.start()
    await server.stop()
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.post("/workflows/greet/run", json={})).status_code == 503
        assert (await http.get("/health")).status_code == 503


async def test_an_unexpected_error_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(MemoryStore):
        async def page(self, *args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError("hunter2")

    server = served(store=Odd())
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.get("/handlers")
        assert (answer.status_code, answer.json()) == (500, {"detail": "Internal server error"})
    assert "hunter2" in caplog.text
    await server.stop()


async def test_a_signal_stops_the_program_within_the_drain() -> None:
    """With a stream open and a run that waits for a person."""
    program = textwrap.dedent("""
        import asyncio, socket, sys
        from stepway.runner import Config, WorkflowServer
        from tests.stepway.runner.api import flows
        server = WorkflowServer(Config(drain=2.0))
        server.add_workflow("ask", flows.Asking(timeout=None))
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        print(listening.getsockname()[1], flush=True)
        asyncio.run(server.serve(sockets=[listening]))
    """)
    running = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        text=True,
    )
    try:
        assert running.stdout is not None
        port = await asyncio.to_thread(running.stdout.readline)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port.strip()}", timeout=60) as http:
            handler_id = (await http.post("/workflows/ask/run-nowait", json={})).json()["handler_id"]
            async with http.stream("GET", f"/events/{handler_id}?after_sequence=-1") as events:
                running.send_signal(signal.SIGTERM)
                with pytest.raises(httpx.RemoteProtocolError):
                    await events.aread()
        assert await asyncio.to_thread(running.wait, 30) == 0
    finally:
        running.kill()
        running.wait()


def test_importing_the_package_imports_nothing_of_the_platform() -> None:
    program = (
        "import sys, stepway.runner; assert 'uvicorn' not in sys.modules\n"
        "stepway.runner.WorkflowServer\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('services', 'shared', 'fastapi', 'sqlalchemy')])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert out.stdout.strip() == "[]"

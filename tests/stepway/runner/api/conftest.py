"""Servers that listen on a free port of the loopback address, with the flows of `flows`."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import pytest

from stepway.runner import Config, WorkflowServer
from tests.stepway.runner import stores
from tests.stepway.runner.api import flows


def served(config: Config | None = None, **options: object) -> WorkflowServer:
    """A server with all flows."""
    server = WorkflowServer(config, **options)  # type: ignore[arg-type]
    server.add_workflow("greet", flows.Greeting())
    server.add_workflow("add", flows.Adding())
    server.add_workflow("ask", flows.Asking(timeout=None))
    server.add_workflow("wait", flows.Waiting(timeout=None), additional_events=[flows.Hidden])
    server.add_workflow("fail", flows.Failing())
    server.add_workflow("slow", flows.Slow(timeout=None))
    server.add_workflow("count", flows.Counting())
    server.add_workflow("odd", flows.Odd())
    server.add_workflow("many", flows.Many(timeout=None))
    return server


@contextmanager
def free_socket() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        yield listening


@asynccontextmanager
async def listening(server: WorkflowServer) -> AsyncIterator[str]:
    """The server's address while it serves."""
    with free_socket() as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        serving = asyncio.create_task(server.serve(sockets=[free], uvicorn_config={"log_level": "error"}))
        async with httpx.AsyncClient(base_url=url) as client:
            while not serving.done():
                try:
                    await client.get("/health")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.02)
        try:
            yield url
        finally:
            await server.stop()
            await serving


@pytest.fixture(autouse=True)
def closed_gates() -> None:
    """Runs of an earlier test have let go of theirs, or keep them."""
    flows.Slow.gates.clear()


@pytest.fixture(scope="module", params=stores.KINDS)
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    async with stores.opened(request.param) as store, listening(served(Config(drain=1.5), store=store())) as address:
        yield address


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


async def ended(http: httpx.AsyncClient, handler_id: str) -> httpx.Response:
    """The handler, once its run is over."""
    while (answer := await http.get(f"/handlers/{handler_id}")).status_code == 202:
        await asyncio.sleep(0.01)
    return answer


async def opened(http: httpx.AsyncClient, handler_id: str, kind: str) -> None:
    """Wait until a run has written an event of a kind."""
    async with http.stream("GET", f"/events/{handler_id}", params={"after_sequence": -1}) as events:
        async for line in events.aiter_lines():
            if f'"type":"{kind}"' in line:
                return
    raise AssertionError(f"{handler_id} ended without {kind}")

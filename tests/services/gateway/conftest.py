"""A gateway behind a real uvicorn, with workers and keys that a test chooses."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from services.gateway.access import Caller, Credentials
from services.gateway.limits import Limits
from services.gateway.metrics import Metrics
from services.gateway.routes import Gateway, Refresh, router
from services.gateway.table import Route, RouteTable
from services.gateway.table import Worker as Row
from services.gateway.usage import Usage
from shared.errors import Problem
from tests.services.gateway.worker import KEY, Behaviour, Worker, well

SERVED = "smol"
UPSTREAM_NAME = "smollm2-135m.gguf"


class Keys:
    """The app's side of the interface, with its keys in memory."""

    def __init__(self) -> None:
        self.sees: dict[str, set[UUID]] = {}
        self.asked = 0
        self.fault: Exception | None = None
        self.gate: asyncio.Event | None = None

    def grant(self, key: str, endpoint_id: UUID) -> None:
        self.sees.setdefault(f"Bearer {key}", set()).add(endpoint_id)

    def revoke(self, key: str) -> None:
        del self.sees[f"Bearer {key}"]

    async def authorize(self, credentials: Credentials, endpoint_id: UUID) -> Caller:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        authorization = credentials.authorization or ""
        if authorization not in self.sees:
            raise Problem("unauthenticated", "No valid key was sent.")
        if endpoint_id not in self.sees[authorization]:
            raise Problem("not_found", "There is no such endpoint.")
        return Caller(id=authorization.removeprefix("Bearer "))


@dataclass
class Bench:
    """Everything of one test. `key` may use `endpoint_id`."""

    base: str
    table: RouteTable
    keys: Keys
    gateway: Gateway
    registry: CollectorRegistry
    endpoint_id: UUID = field(default_factory=uuid4)
    project_id: UUID = field(default_factory=uuid4)
    key: str = "client-key-91d2"
    usages: list[Usage] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    capacity: int = 4

    @property
    def url(self) -> str:
        return f"{self.base}/endpoints/{self.endpoint_id}/v1"

    @property
    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, trust_env=False, timeout=10
        )

    def client(self, key: str | None = None) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url, api_key=key or self.key, max_retries=0, timeout=10)

    async def worker(self, behaviour: Behaviour = well) -> Worker:
        """Starts one more worker and publishes it."""
        worker = await Worker(f"w{len(self.workers)}", behaviour).start()
        self.workers.append(worker)
        self.publish()
        return worker

    def publish(
        self, *, state: str = "running", reason: str | None = None, workers: list[Worker] | None = None
    ) -> None:
        rows = [
            Row(id=worker.id, url=worker.url, api_key=SecretStr(KEY), capacity=self.capacity)
            for worker in (self.workers if workers is None else workers)
        ]
        route = Route(
            endpoint_id=self.endpoint_id,
            project_id=self.project_id,
            model_name=UPSTREAM_NAME,
            served_name=SERVED,
            aliases=("my-endpoint",),
            state=state,
            reason=reason,
            workers=tuple(rows),
        )
        self.table.replace(self.endpoint_id, route)

    async def used(self, count: int = 1) -> Usage:
        """The last of `count` requests, once the gateway has done with them."""
        async with asyncio.timeout(5):
            while len(self.usages) < count:
                await asyncio.sleep(0.002)
        return self.usages[count - 1]


Serve = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(limits=…, capacity=…, wrap=…)` starts a gateway; everything is stopped after the test."""
    running: list[tuple[Bench, uvicorn.Server, asyncio.Task[None]]] = []

    async def start(
        limits: Limits | None = None,
        *,
        capacity: int = 4,
        wrap: Callable[[FastAPI], None] | None = None,
        refresh: Refresh | None = None,
    ) -> Bench:
        table, keys, registry, usages = RouteTable(), Keys(), CollectorRegistry(), list[Usage]()
        gateway = Gateway(table, keys, limits, refresh=refresh, metrics=Metrics(registry), on_usage=usages.append)
        app = FastAPI()
        app.router.routes.append(router(gateway))
        if wrap is not None:
            wrap(app)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=2))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.002)
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        bench = Bench(base, table, keys, gateway, registry, usages=usages, capacity=capacity)
        keys.grant(bench.key, bench.endpoint_id)
        running.append((bench, server, task))
        return bench

    yield start
    for bench, server, task in running:
        await bench.gateway.aclose()
        server.should_exit = True
        await task
        for worker in bench.workers:
            await worker.stop()

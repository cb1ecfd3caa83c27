"""A port with every shape that a method may have, what answers it, and both ends of it over a real server."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, Protocol
from uuid import UUID

import aiohttp
import httpx
import uvicorn
from pydantic import BaseModel, SecretStr
from starlette.applications import Starlette

from shared.errors import Problem
from shared.jobs.attempts import CancelRequested
from shared.jobs.ledger import StaleFence
from shared.jobs.outcomes import Permanent, Retry
from shared.rpc.client import remote
from shared.rpc.identity import APP, Identity, service_key
from shared.rpc.server import TOKEN_HEADER, Served, caller, routes
from tests.shared.jobs.engines import Server

SECRET = SecretStr("what the app makes all keys of")
TOKEN = "of-the-sidecar"
NAMES = {"stepway-service": "model", "stepway-service-key": service_key(SECRET, "model")}
SIDECAR = {TOKEN_HEADER: TOKEN}
INSIDE = "a detail that is nobody else's business"


class Part(BaseModel):
    id: UUID
    kind: Literal["big", "small"] = "small"
    note: str | None = None


class Whole(BaseModel):
    parts: list[Part]
    weight: float = 1.0
    more: dict[str, Any] = {}


class ShapesPort(Protocol):
    """`calls` counts what came through."""

    async def raw(self, content: bytes) -> bytes: ...
    async def maybe_raw(self, content: bytes | None) -> bytes | None: ...
    async def texts(self, given: Sequence[str], named: Mapping[str, int | None]) -> list[str]: ...
    async def whole(self, one: Whole, parts: list[Part]) -> Whole: ...
    async def any(self, data: Any) -> Any: ...
    async def number(self, value: float) -> float: ...
    async def pair(self, id: UUID, several: list[UUID]) -> list[UUID]: ...
    async def nothing(self) -> None: ...
    async def with_defaults(self, first: int, second: str = "two", third: int | None = None) -> list[Any]: ...
    async def who(self) -> str | None: ...
    async def refuse(self, how: str) -> None: ...
    async def slow(self) -> None: ...
    def lines(self, given: list[str], end: str) -> AsyncIterator[str]: ...
    def parts(self, given: list[Part]) -> AsyncIterator[Part]: ...
    def chunks(self, given: list[bytes]) -> AsyncIterator[bytes]: ...


def refusal(how: str) -> BaseException:
    return {
        "permanent": Permanent("model_gone", "The model is gone."),
        "retry": Retry("busy", "Come back.", after=7.5),
        "retry soon": Retry("busy", "Come back."),
        "problem": Problem("not_found", "There is no such thing."),
        "stale": StaleFence("the fence"),
        "cancelled": CancelRequested("the job"),
        "fault": RuntimeError(INSIDE),
        "key": KeyError(INSIDE),
        "base": BaseException(INSIDE),
    }[how]


class Shapes:
    """Implements `ShapesPort`: gives back what it was given."""

    def __init__(self) -> None:
        self.calls = 0
        self.hold = asyncio.Event()
        self.closed = asyncio.Event()

    async def raw(self, content: bytes) -> bytes:
        self.calls += 1
        return content

    async def maybe_raw(self, content: bytes | None) -> bytes | None:
        return content

    async def texts(self, given: Sequence[str], named: Mapping[str, int | None]) -> list[str]:
        return [*given, *(f"{name}={value}" for name, value in named.items())]

    async def whole(self, one: Whole, parts: list[Part]) -> Whole:
        return one.model_copy(update={"parts": one.parts + parts})

    async def any(self, data: Any) -> Any:
        return data

    async def number(self, value: float) -> float:
        return value

    async def pair(self, id: UUID, several: list[UUID]) -> list[UUID]:
        return [id, *several]

    async def nothing(self) -> None:
        self.calls += 1

    async def with_defaults(self, first: int, second: str = "two", third: int | None = None) -> list[Any]:
        return [first, second, third]

    async def who(self) -> str | None:
        return caller.get()

    async def refuse(self, how: str) -> None:
        self.calls += 1
        raise refusal(how)

    async def slow(self) -> None:
        self.calls += 1
        await self.hold.wait()

    async def lines(self, given: list[str], end: str) -> AsyncIterator[str]:
        try:
            for line in given:
                yield line
            if end == "hold":
                await self.hold.wait()
            elif end:
                raise refusal(end)
        finally:
            self.closed.set()

    async def parts(self, given: list[Part]) -> AsyncIterator[Part]:
        for part in given:
            yield part

    async def chunks(self, given: list[bytes]) -> AsyncIterator[bytes]:
        for chunk in given:
            yield chunk


class Direct:
    """The way to a service without a sidecar between: what a sidecar would add is added here. Implements `Invoke`."""

    def __init__(self, identity: Identity, port: int, token: str = TOKEN) -> None:
        self.port = port
        self._identity = identity
        self._token = token

    @asynccontextmanager
    async def post(
        self, service: str, path: str, body: bytes, headers: Mapping[str, str], timeout: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        own = {TOKEN_HEADER: self._token, **self._identity.headers_for(service)}
        url, limit = f"http://127.0.0.1:{self.port}/{path}", aiohttp.ClientTimeout(total=timeout)
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.post(url, data=body, headers={**own, **headers}) as answer,
        ):
            yield answer


class Serving:
    """The app, with `shapes` behind its port, which the service `model` may call."""

    def __init__(self) -> None:
        self.shapes = Shapes()
        self.identity = Identity(APP, secret=SECRET)
        self.port = 0
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        served = Served(ShapesPort, self.shapes, frozenset({"model"}))
        app = Starlette(routes=routes([served], self.identity, SecretStr(TOKEN)))
        self._server = Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        self._listener = listener

    async def stop(self) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = self._server.force_exit = True
            await self._task
            self._listener.close()

    def caller(self, service: str = "model", *, patience: float = 30.0, timeout: float = 60.0) -> Any:
        """The port, as that service sees it; typed as the Protocol by those who use it."""
        identity = Identity(service, key=SecretStr(service_key(SECRET, service)))
        return remote(ShapesPort, APP, Direct(identity, self.port), patience=patience, timeout=timeout)

    async def ask(
        self, method: str, headers: Mapping[str, str], body: bytes | AsyncIterator[bytes] = b"{}"
    ) -> httpx.Response:
        """A call by hand, with no headers but these."""
        async with httpx.AsyncClient(trust_env=False) as client:
            url = f"http://127.0.0.1:{self.port}/internal/shapes/{method}"
            given = {name.encode(): value.encode() for name, value in headers.items()}
            return await client.post(url, content=body, headers=given, timeout=60)


@asynccontextmanager
async def serving() -> AsyncIterator[Serving]:
    made = Serving()
    await made.start()
    try:
        yield made
    finally:
        made.shapes.hold.set()
        await made.stop()

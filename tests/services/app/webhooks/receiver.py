"""A real receiver of webhooks on the loopback address: it records what comes, and answers as it is told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json
from standardwebhooks import Webhook


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = from_json(self.body)
        return content

    @property
    def event(self) -> str:
        return str(self.content["type"])

    def verified(self, secret: str) -> Any:
        """The content, checked as a receiver does; raises when the signature is not by this secret."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass(frozen=True)
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"


Behaviour = Callable[[Received], Awaitable[Answer]]


async def well(_received: Received) -> Answer:
    return Answer()


def always(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    async def answer(_received: Received) -> Answer:
        return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)

    return answer


def first(*statuses: int) -> Behaviour:
    """These statuses, one after another, then 200."""
    left = list(statuses)

    async def answer(_received: Received) -> Answer:
        return Answer(left.pop(0) if left else 200)

    return answer


async def hang(_received: Received) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


class Receiver:
    def __init__(self) -> None:
        self.received: list[Received] = []
        self.behaviours: dict[str, Behaviour] = {}  # by path; `well` otherwise
        self.port = 0
        self._news = asyncio.Condition()
        self._open: set[asyncio.Task[Any]] = set()

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def at(self, path: str) -> list[Received]:
        return [one for one in self.received if one.path == path]

    async def until(self, count: int, path: str | None = None) -> list[Received]:
        """What has come, once it is so much."""

        def found() -> list[Received]:
            return self.received if path is None else self.at(path)

        async with asyncio.timeout(30), self._news:
            await self._news.wait_for(lambda: len(found()) >= count)
        return found()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await self._exchange(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        received = Received(
            head[0].split(" ")[1], headers, await reader.readexactly(int(headers.get("content-length", "0")))
        )
        async with self._news:
            self.received.append(received)
            self._news.notify_all()
        answer = await self.behaviours.get(received.path, well)(received)
        lines = [f"HTTP/1.1 {answer.status} X", f"content-length: {len(answer.body)}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + answer.body)
        await writer.drain()

    async def close(self) -> None:
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


@asynccontextmanager
async def running() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        await receiver.close()

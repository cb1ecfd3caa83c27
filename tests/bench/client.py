"""A lean HTTP/1.1 client for load generators: it must cost the machine far less than the server that it measures."""

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Self, TypeVar

import uvloop

T = TypeVar("T")


class Connection:
    """One kept-open connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._head = head

    @classmethod
    async def open(cls, host: tuple[str, int], key: str) -> Self:
        reader, writer = await asyncio.open_connection(*host, limit=1 << 24)
        return cls(reader, writer, f"Host: {host[0]}:{host[1]}\r\nAuthorization: Bearer {key}\r\n".encode())

    async def send(self, method: str, path: str, body: bytes = b"") -> int:
        """Send a request and read the head of its answer; returns the status. The rest is `self.length` bytes, or a stream."""
        content = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body) if body else b""
        self._writer.write(f"{method} {path} HTTP/1.1\r\n".encode() + self._head + content + b"\r\n" + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        self.length: int | None = None
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                self.length = int(value)
        return int(head[9:12])

    async def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of the answer; RuntimeError unless it is a success."""
        status = await self.send(method, path, body)
        answer = await self._reader.readexactly(self.length or 0)
        if status >= 300:
            raise RuntimeError(f"{method} {path} answered {status}: {answer[:500]!r}")
        return answer

    async def read_some(self) -> bytes:
        """What has come of a stream, at least one byte; nothing at its end."""
        return await self._reader.read(1 << 20)

    async def read_chunk(self) -> bytes:
        """The next chunk of a chunked answer; nothing at its end."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(size + 2))[:size]

    def close(self) -> None:
        self._writer.close()


def in_process(function: Callable[..., Awaitable[T]], *arguments: Any, timeout: float = 300.0) -> T:
    """What the coroutine function returns, run in a new process of its own: load and service share no interpreter."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, function, arguments).result(timeout)


def _run(function: Callable[..., Awaitable[T]], arguments: tuple[Any, ...]) -> T:
    async def body() -> T:
        return await function(*arguments)

    return uvloop.run(body())

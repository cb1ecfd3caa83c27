"""Small real TLS servers on loopback, each answering in one way, for what a cluster's address may turn out to be."""

import asyncio
import contextlib
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.testbed.certificates import Authority, Pair, authority

VERSION = {"gitVersion": "v1.31.2", "major": "1", "minor": "31", "platform": "linux/arm64"}


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    peer: dict[str, Any] | None  # the client's certificate


# Bytes are written as they are; a coroutine function does the writing itself.
Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
Handler = Callable[[Request], Answer]


@dataclass(slots=True)
class Server:
    port: int = 0
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


def http(body: object, status: int = 200, **headers: str) -> bytes:
    """A whole HTTP answer; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    lines = {"Content-Type": kind, "Content-Length": str(len(content)), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + content


def status(code: int, **headers: str) -> bytes:
    """A Kubernetes Status, as an API server refuses."""
    return http({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}, code, **headers)


@contextlib.asynccontextmanager
async def serving(
    handler: Handler,
    *,
    pair: Pair | None = None,
    clients: Authority | None = None,
) -> AsyncIterator[Server]:
    """`handler` on a free port of 127.0.0.1. `clients`: a certificate of this authority is demanded."""
    server = Server()
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            connections.add(task)
            task.add_done_callback(connections.discard)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            request = await _read(reader, writer)
            server.requests.append(request)
            answer = handler(request)
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        writer.close()

    context = _context(pair or authority().issue("server", names=("127.0.0.1",)), clients)
    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


@contextlib.asynccontextmanager
async def silent() -> AsyncIterator[Server]:
    """Accepts connections and says nothing, not even in TLS."""
    writers: list[asyncio.StreamWriter] = []

    def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    listener = await asyncio.start_server(keep, "127.0.0.1", 0)
    try:
        yield Server(listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        for writer in writers:
            writer.close()


@contextlib.asynccontextmanager
async def plain() -> AsyncIterator[Server]:
    """A web server without TLS: it takes the handshake for a bad request, and says so in plain text."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(http(b"Bad Request", 400))
        writer.close()

    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    try:
        yield Server(listener.sockets[0].getsockname()[1])
    finally:
        listener.close()


async def never(writer: asyncio.StreamWriter) -> None:
    """An answer that does not come."""
    await asyncio.Event().wait()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body, writer.get_extra_info("peercert"))


def _context(pair: Pair, clients: Authority | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory(prefix="stepway-test-") as directory:
        certificate, key = Path(directory, "server.crt"), Path(directory, "server.key")
        certificate.write_bytes(pair.certificate)
        key.write_bytes(pair.key)
        context.load_cert_chain(certificate, key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clients.pair.certificate.decode())
    return context

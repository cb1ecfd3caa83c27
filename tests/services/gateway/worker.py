"""A small HTTP/1.1 server that stands for a model's worker and can misbehave in the ways that real ones do."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

TOKENS = [f"word{number} " for number in range(5)]
CHAT = {"messages": [{"role": "user", "content": "Say hello."}]}
KEY = "worker-key-6f1c"


@dataclass
class Seen:
    """One request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    client_gone: bool = False


class Answer:
    """Writes to the one who asked, byte by byte if need be."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def whole(self, status: int, body: bytes, *headers: str, kind: str = "application/json") -> None:
        lines = [f"HTTP/1.1 {status} Status", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
        await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def json(self, body: Any, status: int = 200, *headers: str) -> None:
        await self.whole(status, json.dumps(body).encode(), *headers)

    async def begin_events(self, *headers: str) -> None:
        lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked", *headers]
        await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    def reset(self) -> None:
        self._writer.transport.abort()


Behaviour = Callable[[Seen, Answer], Awaitable[None]]


def chat_event(text: str) -> bytes:
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
                                   "choices": [delta]}).encode() + b"\n\n"  # fmt: skip


async def well(seen: Seen, answer: Answer) -> None:
    """What a well worker does, on every path."""
    if seen.path == "/v1/embeddings":
        vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        await answer.json({"object": "list", "data": [vector], "model": seen.body["model"], "usage": usage})
    elif seen.path == "/v1/completions":
        choice = {"index": 0, "text": "done", "finish_reason": "stop", "logprobs": None}
        await answer.json({"id": "t1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})
    elif seen.body.get("stream"):
        await stream(seen, answer)
    else:
        choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        body = {"id": "c1", "object": "chat.completion", "created": 1, "model": seen.body["model"], "choices": [choice]}
        await answer.json(body)


async def stream(seen: Seen, answer: Answer) -> None:
    await answer.begin_events()
    for token in TOKENS:
        await answer.chunk(chat_event(token))
    await answer.chunk(b"data: [DONE]\n\n")
    await answer.end()


async def hang(seen: Seen, answer: Answer) -> None:
    await asyncio.Event().wait()


async def die(seen: Seen, answer: Answer) -> None:
    answer.reset()


async def die_after_headers(seen: Seen, answer: Answer) -> None:
    await answer.begin_events()
    answer.reset()


async def die_mid_stream(seen: Seen, answer: Answer) -> None:
    """Two tokens, then half an event, then nothing."""
    await answer.begin_events()
    await answer.chunk(chat_event("one "))
    await answer.chunk(chat_event("two "))
    await answer.chunk(chat_event("three")[:20])
    answer.reset()


async def stall_mid_stream(seen: Seen, answer: Answer) -> None:
    await answer.begin_events()
    await answer.chunk(chat_event("one "))
    await asyncio.Event().wait()


async def garbage(seen: Seen, answer: Answer) -> None:
    await answer.raw(b"\x00\x01 this is not HTTP\r\n\r\n")


async def empty(seen: Seen, answer: Answer) -> None:
    await answer.whole(200, b"")


async def page(seen: Seen, answer: Answer) -> None:
    await answer.whole(200, b"<script>alert(1)</script>", kind="text/html")


def refuse(status: int, body: bytes, *headers: str, kind: str = "application/json") -> Behaviour:
    async def behaviour(seen: Seen, answer: Answer) -> None:
        await answer.whole(status, body, *headers, kind=kind)

    return behaviour


class Worker:
    """`behaviour` can be changed at any time. `seen` has every request that was read in full."""

    def __init__(self, id_: str, behaviour: Behaviour = well) -> None:
        self.id = id_
        self.behaviour = behaviour
        self.seen: list[Seen] = []
        self.now = 0
        self.most = 0  # requests that ran at the same time
        self.connections = 0
        self.arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> "Worker":
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Nobody listens any more, and what runs is cut off."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def wait_for(self, count: int) -> None:
        """Until `count` requests have come in, all told."""
        async with self.arrived, asyncio.timeout(5):
            await self.arrived.wait_for(lambda: len(self.seen) >= count)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._request(reader, writer):
                    pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        seen = Seen(method, path, headers, json.loads(raw) if raw else None, raw)
        async with self.arrived:
            self.seen.append(seen)
            self.arrived.notify_all()
        self.now += 1
        self.most = max(self.most, self.now)
        working = asyncio.ensure_future(self.behaviour(seen, Answer(writer)))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            broken = working.done() and isinstance(working.exception(), ConnectionError)
            seen.client_gone = broken or (leaving.done() and not working.done())
            return working.done() and working.exception() is None and not writer.is_closing() and not leaving.done()
        finally:
            self.now -= 1
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
            seen.ended.set()

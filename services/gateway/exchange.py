"""One request on its way through a worker and back: attempts, time limits, and the answer's bytes as they come.

`routes` runs it in a task of its own, and cancels the task when the client goes or its key is revoked.
"""

import asyncio
import re
from collections.abc import Callable
from uuid import UUID

import httpx
from starlette.types import Send

from services.gateway import errors
from services.gateway.balance import Balancer, Lease
from services.gateway.limits import Limits
from services.gateway.upstream import Upstream, WorkerFailure, failure, secret_of
from services.gateway.usage import Usage
from shared.errors import Problem

_EVENT_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_HELD_BYTES = 64 * 1024  # of an event that is not complete yet
_ERROR_BYTES = 64 * 1024
_ERROR_SECONDS = 5.0  # to read the rest of a worker's refusal
_LAST_WORDS_SECONDS = 1.0  # for a client that may not be reading
_USAGE_BYTES = 500
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens":\s*(\d{1,9})\b')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s*(\d{1,9})\b')
_PASSED_ON = (b"content-type", b"cache-control")
NOT_IMPLEMENTED = 501
_PROXY_FAULTS = frozenset({401, 403, 407, 502, 503})  # the worker is not well, or refuses us rather than the client


class Reply:
    """The client's side: at most one answer, and what has been sent of it."""

    __slots__ = ("_clock", "_headers", "_send", "begun", "finished", "is_stream", "usage")

    def __init__(
        self, send: Send, headers: list[tuple[bytes, bytes]], usage: Usage, clock: Callable[[], float]
    ) -> None:
        self._send = send
        self._headers = headers
        self._clock = clock
        self.usage = usage
        self.is_stream = False
        self.begun = False  # nothing else can be answered any more
        self.finished = False

    def add_headers(self, headers: dict[str, str]) -> None:
        """For the answer, whoever makes it."""
        self._headers = self._headers + [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        self.usage.first_byte_at = self._clock()
        self.usage.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self._headers})

    async def chunk(self, data: bytes) -> None:
        self.usage.bytes += len(data)
        self._count_tokens(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        self.usage.bytes += len(data)
        self._count_tokens(data)
        self.finished = True
        await self._send({"type": "http.response.body", "body": data})

    def _count_tokens(self, data: bytes) -> None:
        """The last word of the worker counts. In a text its quotes would be escaped: nobody's words look like it."""
        at = data.rfind(b'"usage":')
        if at >= 0:
            told = data[at : at + _USAGE_BYTES]
            if (prompt := _PROMPT_TOKENS.search(told)) is not None:
                self.usage.prompt_tokens = int(prompt[1])
            if (completion := _COMPLETION_TOKENS.search(told)) is not None:
                self.usage.completion_tokens = int(completion[1])

    async def json(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        """A whole answer that the gateway makes itself."""
        self.begun = True
        self.usage.status = status
        sent = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        sent += [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        await self._send({"type": "http.response.start", "status": status, "headers": sent + self._headers})
        await self.end(data)

    async def problem(self, problem: Problem) -> None:
        """The error as the answer; as the last event of a stream that has begun; else by breaking off the answer."""
        self.usage.error = problem.code
        if not self.begun:
            extra = dict(problem.headers)
            if problem.status == 401:
                extra.setdefault("WWW-Authenticate", "Bearer")
            await self.json(problem.status, errors.of_problem(problem), extra)
        elif self.is_stream and not self.finished:
            try:
                async with asyncio.timeout(_LAST_WORDS_SECONDS):
                    await self.end(errors.event(problem))
            except TimeoutError:
                pass  # the server closes the connection, as the answer is not complete


class Exchange:
    def __init__(
        self,
        reply: Reply,
        balancer: Balancer,
        upstream: Upstream,
        limits: Limits,
        *,
        endpoint_id: UUID,
        path: str,
        body: bytes,
        headers: dict[str, str],
        streamed: bool,
    ) -> None:
        self._reply = reply
        self._balancer = balancer
        self._upstream = upstream
        self._limits = limits
        self._endpoint_id = endpoint_id
        self._path = path
        self._body = body
        self._headers = headers
        self._streamed = streamed

    async def run(self) -> None:
        """Answers the client. Raises Problem for what the caller shall tell it."""
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                await self._run()
        except TimeoutError:
            detail = f"The answer took longer than {self._limits.total_seconds:g} s."
            raise Problem("worker_timeout", detail) from None

    async def _run(self) -> None:
        failed: WorkerFailure | None = None
        avoid: frozenset[str] = frozenset()
        for _ in range(self._limits.attempts):
            with await self._lease(avoid, failed) as lease:
                try:
                    await self._attempt(lease)
                    return
                except WorkerFailure as error:
                    lease.failed(hard=error.hard)
                    failed = error
                    avoid |= {lease.worker.id}
                    if self._reply.begun:
                        raise Problem(
                            "worker_failed", f"The worker {error.what} in the midst of its answer."
                        ) from error
        if failed is not None:
            raise failed.problem() from failed

    async def _lease(self, avoid: frozenset[str], failed: WorkerFailure | None) -> Lease:
        try:
            lease = await self._balancer.acquire(self._endpoint_id, avoid)
        except Problem as problem:
            if failed is not None and problem.code == "endpoint_unavailable":
                raise failed.problem() from failed  # says more than that no worker is left
            raise
        self._reply.usage.worker_id = lease.worker.id
        return lease

    async def _attempt(self, lease: Lease) -> None:
        first = self._limits.first_byte_seconds if self._streamed else None
        try:
            async with asyncio.timeout(first) as patience:
                response = await self._upstream.post(lease.worker, self._path, self._body, self._headers)
                try:
                    await self._answer(response, patience, secret_of(lease.worker))
                finally:
                    await response.aclose()
        except TimeoutError:
            if not self._reply.begun:
                lease.failed(hard=False)
                raise Problem("worker_timeout", f"The worker sent nothing for {first or 0:g} s.") from None
            detail = f"Nothing was sent for {self._limits.idle_seconds:g} s."
            raise Problem("worker_timeout", detail) from None
        lease.succeeded()

    async def _answer(self, response: httpx.Response, patience: asyncio.Timeout, secret: str | None) -> None:
        status = response.status_code
        if status in _PROXY_FAULTS or not 200 <= status < 600 or 300 <= status < 400:
            raise WorkerFailure(f"answered {status}", unreachable=status == 503)
        if status == NOT_IMPLEMENTED:  # with the engine's own advice on how to start it, which is not for clients
            raise Problem("operation_unsupported", "The endpoint's model does not serve this operation.")
        if status >= 400:
            body = await _read_refusal(response)
            extra = {"Retry-After": response.headers["retry-after"]} if "retry-after" in response.headers else {}
            await self._reply.json(*errors.of_worker(status, body, secret), extra)
            return
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if kind == "text/event-stream":
                await self._relay_events(response, patience)
            elif kind == "application/json":
                await self._relay_whole(response, patience)
            else:  # nothing else is OpenAI's, and a page would run in the console's origin
                raise WorkerFailure("answered with neither JSON nor an event stream", unreachable=False)
        except httpx.TransportError as error:
            raise failure(error) from error

    async def _relay_events(self, response: httpx.Response, patience: asyncio.Timeout) -> None:
        """Passes the bytes on in whole events, so that an error event never lands inside another."""
        reply, idle, now = self._reply, self._limits.idle_seconds, asyncio.get_running_loop().time
        reply.is_stream = True
        held = b""
        async for data in _body(response):
            chunk = held + data if held else data
            held = b""
            if not chunk.endswith(_EVENT_ENDS):
                chunk, held = _cut(chunk)
            patience.reschedule(now() + idle)
            if not chunk:
                continue
            if not reply.begun:
                await reply.start(response.status_code, _headers(response))
            await reply.chunk(chunk)
        if held and not reply.begun:
            await reply.start(response.status_code, _headers(response))
        if not reply.begun:
            raise WorkerFailure("gave an empty answer", unreachable=False)
        await reply.end(held)

    async def _relay_whole(self, response: httpx.Response, patience: asyncio.Timeout) -> None:
        """Keeps the answer back while it is small: until it goes out, another worker can still be asked."""
        reply, idle, now = self._reply, self._limits.idle_seconds, asyncio.get_running_loop().time
        kept = bytearray()
        async for chunk in _body(response):
            patience.reschedule(now() + idle)
            if reply.begun:
                await reply.chunk(chunk)
                continue
            kept += chunk
            if len(kept) > self._limits.buffer_bytes:
                await reply.start(response.status_code, _headers(response, with_length=True))
                await reply.chunk(bytes(kept))
        if reply.begun:
            await reply.end()
            return
        if not kept:
            raise WorkerFailure("gave an empty answer", unreachable=False)
        await reply.start(response.status_code, [*_headers(response), (b"content-length", str(len(kept)).encode())])
        await reply.end(bytes(kept))


def _body(response: httpx.Response) -> httpx.AsyncByteStream:
    """The bytes as they come from the connection, without the layers that decode and count them."""
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)
    return stream


async def _read_refusal(response: httpx.Response) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_ERROR_SECONDS):
            async for chunk in _body(response):
                body += chunk
                if len(body) > _ERROR_BYTES:
                    break
    except (TimeoutError, httpx.TransportError):
        pass  # the status stands, and what has come of the reason
    return bytes(body[:_ERROR_BYTES])


def _cut(chunk: bytes) -> tuple[bytes, bytes]:
    """What ends with an event, and the rest; everything and nothing when the rest is too long to be kept."""
    end = max((chunk.rfind(mark) + len(mark) for mark in _EVENT_ENDS if mark in chunk), default=0)
    return (chunk, b"") if len(chunk) - end > _HELD_BYTES else (chunk[:end], chunk[end:])


def _headers(response: httpx.Response, *, with_length: bool = False) -> list[tuple[bytes, bytes]]:
    """Of the worker's headers those that the client may have: no cookies, no key, nothing about the connection."""
    names = (*_PASSED_ON, b"content-length") if with_length else _PASSED_ON
    return [(name.lower(), value) for name, value in response.headers.raw if name.lower() in names]

"""Answers of strangers under a limit: what counts is the body after it was decompressed, so that no small answer fills memory.

`BoundedTransport` stands between an httpx client and the guarded transport, and hands out bodies without compression.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator

import httpx

from stepway.tasks import TaskError

ACCEPTED = "gzip, deflate"
_PIECE = 256 * 1024  # bytes that one step of decompression gives at most


def too_large(limit: int) -> TaskError:
    return TaskError("too_large", f"The answer is larger than {size_of(limit)}, which is the limit.")


def size_of(count: int) -> str:
    return f"{count // 1024**2} MiB" if count >= 1024**2 and count % 1024**2 == 0 else f"{count} bytes"


class BoundedTransport(httpx.AsyncBaseTransport):
    """Asks for no compression but ours, and undoes it. Reading a body raises `TaskError` beyond `limit` bytes.

    `error_limit` is for the bodies of statuses from 400 on, which libraries take in before anybody has asked for them.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, limit: int, error_limit: int | None = None) -> None:
        self._inner = inner
        self._limit = limit
        self._error_limit = limit if error_limit is None else error_limit

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["Accept-Encoding"] = ACCEPTED
        answer = await self._inner.handle_async_request(request)
        coding = answer.headers.get("content-encoding", "").strip().lower() or "identity"
        headers = answer.headers
        limit = self._limit if answer.status_code < 400 else self._error_limit
        try:
            body = _Body(answer.stream, _decoder(coding), limit)
            if coding != "identity":
                headers = httpx.Headers(
                    [pair for pair in headers.raw if pair[0].lower() not in (b"content-encoding", b"content-length")]
                )
            elif request.method != "HEAD" and _declared(headers) > limit:
                raise too_large(limit)
        except TaskError:
            await answer.aclose()
            raise
        return httpx.Response(answer.status_code, headers=headers, stream=body, extensions=answer.extensions)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Identity:
    def pieces(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        """Nothing can be missing."""


class _Zlib:
    """gzip (of any number of members) and deflate, with or without its header."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._stream = zlib.decompressobj(bits)
        self._begun = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._stream.eof:
                self._stream = zlib.decompressobj(self._bits)
            try:
                piece = self._stream.decompress(data, _PIECE)
            except zlib.error:
                if self._begun or self._bits != zlib.MAX_WBITS:
                    raise _damaged() from None
                self._bits = -zlib.MAX_WBITS
                self._stream = zlib.decompressobj(self._bits)
                self._begun = True
                continue
            self._begun = True
            data = self._stream.unused_data or self._stream.unconsumed_tail
            if piece:
                yield piece

    def finish(self) -> None:
        if self._begun and not self._stream.eof:
            raise _damaged()


def _decoder(coding: str) -> _Identity | _Zlib:
    if coding == "identity":
        return _Identity()
    if coding in ("gzip", "x-gzip"):
        return _Zlib(16 + zlib.MAX_WBITS)
    if coding == "deflate":
        return _Zlib(zlib.MAX_WBITS)
    shown = coding[:40] if coding.isprintable() else "unknown"
    raise TaskError("bad_answer", f"The answer is compressed in a way that was not asked for ({shown}).")


def _damaged() -> TaskError:
    return TaskError("bad_answer", "The answer's compression is damaged or cut short.", retryable=True)


def _declared(headers: httpx.Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else 0


class _Body(httpx.AsyncByteStream):
    def __init__(self, inner: object, decoder: _Identity | _Zlib, limit: int) -> None:
        assert isinstance(inner, httpx.AsyncByteStream)
        self._inner = inner
        self._decoder = decoder
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        taken = 0
        async for data in self._inner:
            for piece in self._decoder.pieces(data):
                taken += len(piece)
                if taken > self._limit:
                    raise too_large(self._limit)
                yield piece
                await asyncio.sleep(0)  # much may come out of little, and others want their turn
        self._decoder.finish()

    async def aclose(self) -> None:
        await self._inner.aclose()

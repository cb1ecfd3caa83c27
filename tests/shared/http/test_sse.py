"""Event streams over a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response

from shared.errors import Problem
from shared.http import guards, problems
from shared.http.sse import HEARTBEAT, Batch, EventStream, StreamSlots, encode, last_event_id
from tests.shared.http.conftest import Serve, client_of


class Source:
    """Batches that a test pushes; None ends the stream."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Batch | Exception | None] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.allowed = True

    async def batches(self) -> AsyncIterator[Batch]:
        try:
            while (batch := await self.queue.get()) is not None:
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            self.closed.set()


def _app(source: Source, heartbeat: float = 15.0, recheck: float = 30.0) -> FastAPI:
    app = FastAPI()
    problems.install(app)
    guards.install(app, allowed_hosts=["127.0.0.1", "test"])

    async def allowed() -> bool:
        return source.allowed

    @app.get("/events")
    async def _events() -> Response:
        return EventStream(source.batches(), heartbeat=heartbeat, allowed=allowed, recheck=recheck)

    @app.get("/last")
    async def _last(request: Request) -> int | None:
        return last_event_id(request)

    return app


@asynccontextmanager
async def _reading(url: str) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[bytes]]]:
    async with httpx.AsyncClient(timeout=10) as client, client.stream("GET", f"{url}/events") as answer:
        yield answer, answer.aiter_raw()


async def test_events_come_at_once_and_the_stream_ends(serve: Serve) -> None:
    source = Source()
    async with serve(_app(source)) as url, _reading(url) as (answer, chunks):
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-length" not in answer.headers
        assert await anext(chunks) == HEARTBEAT
        source.queue.put_nowait([(1, "step", '{"a":1}'), (2, "job", "{}")])
        assert await anext(chunks) == b'id: 1\nevent: step\ndata: {"a":1}\n\nid: 2\nevent: job\ndata: {}\n\n'
        source.queue.put_nowait(encode(3, "end", "null"))
        assert await anext(chunks) == b"id: 3\nevent: end\ndata: null\n\n"
        source.queue.put_nowait(None)
        assert [chunk async for chunk in chunks] == []
        assert source.closed.is_set()


async def test_a_heartbeat_when_nothing_comes(serve: Serve) -> None:
    source = Source()
    async with serve(_app(source, heartbeat=0.02)) as url, _reading(url) as (_, chunks):
        assert [await anext(chunks) for _ in range(3)] == [HEARTBEAT] * 3
        source.queue.put_nowait([(1, "x", "1")])
        received = b""
        while b"id: 1" not in received:
            received += await anext(chunks)
        source.queue.put_nowait(None)


async def test_the_source_is_closed_when_the_client_goes(serve: Serve) -> None:
    source = Source()
    async with serve(_app(source)) as url:
        async with _reading(url) as (_, chunks):
            assert await anext(chunks) == HEARTBEAT
        async with asyncio.timeout(5):
            await source.closed.wait()


async def test_the_stream_ends_when_it_is_no_longer_allowed(serve: Serve) -> None:
    source = Source()
    async with serve(_app(source, recheck=0.02)) as url, _reading(url) as (_, chunks):
        assert await anext(chunks) == HEARTBEAT
        source.queue.put_nowait([(1, "x", "1")])
        assert b"id: 1" in await anext(chunks)
        source.allowed = False
        assert [chunk async for chunk in chunks] == []
        assert source.closed.is_set()


async def test_a_fault_cuts_the_stream(serve: Serve) -> None:
    source = Source()
    async with serve(_app(source)) as url, _reading(url) as (_, chunks):
        assert await anext(chunks) == HEARTBEAT
        source.queue.put_nowait(RuntimeError("lost"))
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(chunks)


async def test_streams_end_whole_when_the_service_stops(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    source, slots = Source(), StreamSlots()
    app = FastAPI()

    @app.get("/events")
    async def _events() -> Response:
        stream = EventStream(source.batches())
        with slots.hold("key") as stream.closing:
            return stream

    async with serve(app) as url, _reading(url) as (_, chunks):
        assert await anext(chunks) == HEARTBEAT
        source.queue.put_nowait([(1, "x", "1")])
        assert b"id: 1" in await anext(chunks)
        slots.close()
        assert [chunk async for chunk in chunks] == []  # no RemoteProtocolError: the answer is whole
        assert source.closed.is_set()
        async with _reading(url) as (_, late):
            assert [chunk async for chunk in late] == [HEARTBEAT]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_many_readers_of_one_encoding(serve: Serve) -> None:
    app = FastAPI()
    event = asyncio.Event()
    bytes_of_all = encode(1, "job", "{}")

    async def one() -> AsyncIterator[Batch]:
        await event.wait()
        yield bytes_of_all

    @app.get("/events")
    async def _events() -> Response:
        return EventStream(one())

    async def read(url: str, ready: asyncio.Semaphore) -> bytes:
        async with _reading(url) as (_, chunks):
            first = await anext(chunks)
            ready.release()
            return first + b"".join([chunk async for chunk in chunks])

    async with serve(app) as url:
        ready = asyncio.Semaphore(0)
        readers = [asyncio.create_task(read(url, ready)) for _ in range(50)]
        for _ in readers:
            await ready.acquire()
        event.set()
        assert set(await asyncio.gather(*readers)) == {HEARTBEAT + bytes_of_all}


@pytest.mark.parametrize(("sent", "read"), [("7", 7), ("0", 0), ("", None), (None, None)])
async def test_last_event_id(sent: str | None, read: int | None) -> None:
    async with client_of(_app(Source())) as client:
        answer = await client.get("/last", headers={} if sent is None else {"Last-Event-ID": sent})
    assert answer.json() == read


@pytest.mark.parametrize("sent", [b"x", b"-1", b"1.5", b"9" * 19, b"1 2", "²".encode("latin-1")])
async def test_a_wrong_last_event_id(sent: bytes) -> None:
    async with client_of(_app(Source())) as client:
        answer = await client.get("/last", headers=[(b"Last-Event-ID", sent)])
    assert (answer.status_code, answer.json()["param"]) == (400, "Last-Event-ID")


def test_data_of_several_lines_stays_one_event() -> None:
    assert (
        encode(1, "x", "a\nb\r\nc\rd\u2028e")
        == "id: 1\nevent: x\ndata: a\ndata: b\ndata: c\ndata: d\u2028e\n\n".encode()
    )


def test_streams_of_one_key_are_bounded() -> None:
    slots = StreamSlots(per_key=2)
    with (
        slots.hold("a"),
        slots.hold("a"),
        slots.hold("b"),
        pytest.raises(Problem, match="too_many_streams"),
        slots.hold("a"),
    ):
        pass
    with slots.hold("a"), slots.hold("a"):
        pass

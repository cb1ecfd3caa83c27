"""Bodies that are too large, lie about their length, or do not come."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from stepway.runner import Config
from tests.stepway.runner.api.conftest import listening, served

LIMIT = 10_000


@pytest.fixture(scope="module")
async def small() -> AsyncIterator[str]:
    async with listening(served(Config(max_body=LIMIT))) as url:
        yield url


def body_of(size: int) -> bytes:
    empty = json.dumps({"start_event": {"name": ""}}).encode()
    return empty[:-3] + b"x" * (size - len(empty)) + empty[-3:]


async def parts(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1000):
        yield body[start : start + 1000]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_may_be_as_large_as_the_limit(small: str, chunked: bool) -> None:
    async with httpx.AsyncClient(base_url=small) as http:
        body = body_of(LIMIT)
        answer = await http.post("/workflows/greet/run", content=parts(body) if chunked else body)
        assert answer.status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/workflows/greet/run", "/workflows/greet/run-nowait", "/events/x"])
async def test_a_larger_body_is_refused_and_the_connection_closed(small: str, chunked: bool, path: str) -> None:
    async with httpx.AsyncClient(base_url=small) as http:
        body = body_of(LIMIT + 1)
        answer = await http.post(path, content=parts(body) if chunked else body)
        assert (answer.status_code, answer.headers["connection"]) == (413, "close")
        assert answer.json() == {"detail": f"A body may have {LIMIT} bytes"}


async def raw(url: str, request: bytes) -> bytes:
    """All that is answered, until the server closes the connection or nothing comes any more."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


async def test_a_length_beyond_the_limit_is_refused_before_the_body_comes(small: str) -> None:
    head = b"POST /workflows/greet/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    assert (await raw(small, head)).startswith(b"HTTP/1.1 413 ")


async def test_what_comes_after_the_stated_length_is_another_request(small: str) -> None:
    request = (
        b"POST /workflows/greet/run HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    )
    answer = await raw(small, request + b'{"start_event": 5}')
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") <= 2
    assert b"Internal" not in answer


async def test_half_a_body_starts_nothing(small: str) -> None:
    host, port = small.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = b'{"handler_id": "half"}'
    head = f"POST /workflows/greet/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body) + 1}\r\n\r\n".encode()
    writer.write(head + body)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with httpx.AsyncClient(base_url=small) as http:
        assert (await http.post("/workflows/greet/run", json={})).status_code == 200
        assert (await http.get("/handlers/half")).status_code == 404

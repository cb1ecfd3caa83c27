"""The guards before every route."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from shared import log
from shared.errors import Problem
from shared.http import guards, problems
from shared.http.guards import add_header, check_origin
from tests.shared.http.conftest import Serve, client_of

HOSTS = ["test", "LocalHost", "127.0.0.1", "[::1]", "*.example.org"]


def _app(**given: Any) -> FastAPI:
    app = FastAPI()
    problems.install(app)
    guards.install(
        app, **{"allowed_hosts": HOSTS, "max_body": 100, "body_limits": [("/big", 1000), ("/any", None)], **given}
    )

    @app.get("/")
    async def _root(request: Request) -> dict[str, Any]:
        add_header(request.scope, "RateLimit", "x")
        return {"id": log.request_id()}

    @app.get("/page")
    async def _page() -> Response:
        return HTMLResponse("<p>", headers={"X-Frame-Options": "SAMEORIGIN"})

    @app.get("/crash")
    async def _crash() -> None:
        raise RuntimeError("hunter2")

    @app.get("/half")
    async def _half() -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("hunter2")

        return StreamingResponse(chunks())

    @app.post("/cookie")
    async def _cookie(request: Request) -> None:
        check_origin(request, trusted=["https://console.example.org"])

    @app.post("/raw")
    @app.post("/big")
    @app.post("/any")
    async def _raw(request: Request) -> int:
        return len(await request.body())

    return app


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(_app()) as client:
        yield client


@pytest.mark.parametrize(
    "host",
    [
        "test",
        "TEST:8400",
        "localhost",
        "localhost.:80",
        "127.0.0.1:1",
        "[::1]:8400",
        "a.example.org",
        "a.b.Example.Org:1",
    ],
)
async def test_allowed_hosts(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.org", "test.evil.org", "eviltest", "example.org", ".example.org", "badexample.org", "127.0.0.1.evil.org", "",
     "test:x", "test:80:80", "test@evil.org", "[::2]", "::1", "test/..", "a b", "test,evil.org"],
)  # fmt: skip
async def test_refused_hosts(client: httpx.AsyncClient, host: str) -> None:
    answer = await client.get("/", headers={"Host": host})
    assert (answer.status_code, answer.json()["code"]) == (400, "host_not_allowed")
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_two_host_headers(client: httpx.AsyncClient) -> None:
    assert (await client.get("/", headers=[("Host", "test"), ("Host", "test")])).status_code == 400


async def test_request_ids(client: httpx.AsyncClient) -> None:
    given = await client.get("/", headers={"X-Request-Id": "abc-123.X_y"})
    assert given.headers["x-request-id"] == given.json()["id"] == "abc-123.X_y"
    seen: set[str] = set()
    for odd in ("short", "a" * 65, "with space 1", 'quote"123', "umlaut-äöü".encode("latin-1").decode("latin-1")):
        answer = await client.get("/", headers=[(b"X-Request-Id", odd.encode("latin-1"))])
        assert answer.headers["x-request-id"] == answer.json()["id"] != odd
        assert len(answer.json()["id"]) == 24
        seen.add(answer.json()["id"])
    assert len(seen) == 5
    assert log.request_id() is None


async def test_security_headers(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["ratelimit"] == "x"
    page = await client.get("/page")
    assert "content-security-policy" not in page.headers  # a page brings its own
    assert page.headers.get_list("x-frame-options") == ["SAMEORIGIN"]


async def test_a_fault_bears_the_request_id(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = await client.get("/crash")
    assert answer.status_code == 500
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    ("error", "status"), [(Problem("conflict", "Not now."), 409), (HTTPException(413), 413), (KeyError("hunter2"), 500)]
)
async def test_a_refusal_by_a_middleware(error: Exception, status: int) -> None:
    class Refuses:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise error

    app = FastAPI()
    app.add_middleware(Refuses)
    guards.install(app, allowed_hosts=HOSTS)
    async with client_of(app) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert answer.headers["x-request-id"]
    assert "hunter2" not in answer.text


async def test_half_an_answer_is_cut(serve: Serve) -> None:
    async with serve(_app()) as url, httpx.AsyncClient() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"{url}/half")
        assert (await client.get(f"{url}/")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.org"}, 403),
        ({"Origin": "http://test.evil.org"}, 403),
        ({"Origin": "http://test:81"}, 403),
        ({"Origin": "http://user@test"}, 403),
        ({"Origin": "http://test/path"}, 403),
        ({"Origin": "ftp://test"}, 403),
        ({"Origin": "http://test:x"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "http://test"}, 200),
        ({"Origin": "http://test:80"}, 200),
        ({"Origin": "https://test"}, 200),
        ({"Origin": "https://console.example.org"}, 200),
        ({"Origin": "http://localhost:8400", "Host": "localhost:8400"}, 200),
        ({"Origin": "http://localhost", "Host": "localhost:8400"}, 403),
    ],
)
async def test_changes_by_cookie_need_our_origin(
    client: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    answer = await client.post("/cookie", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "origin_not_allowed"


async def test_two_origins(client: httpx.AsyncClient) -> None:
    answer = await client.post("/cookie", headers=[("Origin", "http://test"), ("Origin", "http://evil.org")])
    assert answer.status_code == 403


async def test_cors_is_off_unless_origins_are_listed(client: httpx.AsyncClient) -> None:
    asked = {"Origin": "https://ui.example.org", "Access-Control-Request-Method": "POST"}
    refused = await client.options("/raw", headers=asked)
    assert refused.status_code == 405
    assert not [name for name in refused.headers if name.startswith("access-control")]
    async with client_of(_app(cors_origins=["https://ui.example.org/"])) as other:
        granted = await other.options("/raw", headers=asked)
        assert granted.headers["access-control-allow-origin"] == "https://ui.example.org"
        stranger = await other.get("/", headers={"Origin": "https://evil.org"})
        assert "access-control-allow-origin" not in stranger.headers


def test_cors_for_everyone_is_refused() -> None:
    with pytest.raises(ValueError, match="one by one"):
        _app(cors_origins=["*"])


async def test_bodies_are_bounded(serve: Serve) -> None:
    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 50

    async with serve(_app()) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.post("/raw", content=b"x" * 100)).json() == 100
        assert (await client.post("/raw", content=chunks(2))).json() == 100
        for content in (b"x" * 101, chunks(3)):
            answer = await client.post("/raw", content=content)
            assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert (await client.post("/big", content=chunks(20))).json() == 1000
        assert (await client.post("/big", content=chunks(21))).status_code == 413
        assert (await client.post("/any", content=b"x" * 5000)).json() == 5000

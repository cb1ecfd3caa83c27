"""Requests as they are counted and traced: by templates of routes, with the trace that they came with."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import Response

from shared.http import guards, problems
from shared.telemetry import traces
from shared.telemetry.http import NamedRoute, Seen
from shared.telemetry.metrics import registry
from tests.otlp import Receiver
from tests.shared.telemetry.test_traces import PARENT, TRACE


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app, router = FastAPI(), APIRouter(prefix="/things")

    @router.get("/{thing_id}")
    async def thing(thing_id: str) -> dict[str, str | None]:
        return {"traceparent": traces.traceparent()}

    @router.post("/{thing_id}/break")
    async def broken(thing_id: str) -> None:
        raise RuntimeError("a fault")

    problems.install(app)
    guards.install(app, allowed_hosts=["test"])
    app.add_middleware(Seen)
    app.include_router(router)
    app.router.routes.append(NamedRoute("/raw/{path:path}", Response("plain")))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
        yield made


def counted(route: str, method: str, status: str) -> float:
    labels = {"route": route, "method": method, "status_class": status}
    return registry().get_sample_value("stepway_http_requests_total", labels) or 0.0


async def test_requests_are_counted_by_template(client: httpx.AsyncClient) -> None:
    wanted = [("/things/{thing_id}", "GET", "2xx"), ("/things/{thing_id}", "HEAD", "2xx"),
              ("/things/{thing_id}/break", "POST", "5xx"), ("unmatched", "GET", "4xx"),
              ("/raw/{path:path}", "GET", "2xx"), ("unmatched", "OTHER", "4xx")]  # fmt: skip
    before = [counted(*one) for one in wanted]
    await client.get("/things/a-name?secret=marker")
    await client.head("/things/b")
    await client.post("/things/a/break")
    await client.get("/nothing/of/the/kind")
    await client.get("/raw/a/b")
    await client.request("BREW", "/nothing")
    assert [counted(*one) for one in wanted] == [count + 1 for count in before]


async def test_a_request_is_a_span_of_its_callers_trace(client: httpx.AsyncClient) -> None:
    with Receiver() as receiver:
        traces.start(receiver.url, service="test")
        try:
            answer = await client.get("/things/a-name?secret=marker", headers={"traceparent": PARENT})
            await client.post("/things/a/break")
            await client.get("/marker")
        finally:
            traces.stop()
        found = receiver.one("GET /things/{thing_id}")
        assert (found.trace, found.parent) == (TRACE, PARENT.split("-")[2])
        assert answer.headers["traceparent"] == answer.json()["traceparent"] == f"00-{TRACE}-{found.id}-01"
        assert found.attributes == {
            "http.request.method": "GET", "http.route": "/things/{thing_id}", "http.response.status_code": 200,
        }  # fmt: skip
        assert receiver.one("POST /things/{thing_id}/break").failed
        assert receiver.one("GET unmatched").attributes["http.response.status_code"] == 404
        assert not [body for body in receiver.raw if b"marker" in body or b"a-name" in body]


async def test_two_parents_are_none(client: httpx.AsyncClient) -> None:
    answer = await client.get("/things/a", headers=[("traceparent", PARENT), ("traceparent", PARENT)])
    assert TRACE not in answer.headers["traceparent"]

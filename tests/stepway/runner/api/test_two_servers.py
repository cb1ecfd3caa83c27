"""Two servers on one database: whichever is asked, the answer is the same."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from llama_agents.client import WorkflowClient

from stepway.runner import Config, WorkflowServer
from stepway.runner.store.postgres import PostgresStore
from tests import postgres
from tests.stepway.runner import stores
from tests.stepway.runner.api import flows
from tests.stepway.runner.api.conftest import ended, listening, opened, served
from tests.stepway.runner.api.test_client import Cutting, behind


@pytest.fixture
async def database() -> AsyncIterator[str]:
    url = stores.new_database()
    yield url
    postgres.server().drop(url)


def one(database: str, **settings: Any) -> WorkflowServer:
    return served(Config(drain=1.5, **settings), store=PostgresStore(database))


async def test_every_route_answers_for_runs_of_the_other(database: str) -> None:
    async with (
        listening(one(database)) as here, listening(one(database)) as there,
        httpx.AsyncClient(base_url=here, timeout=60) as a, httpx.AsyncClient(base_url=there, timeout=60) as b,
    ):  # fmt: skip
        await a.post("/workflows/ask/run-nowait", json={"handler_id": "shared"})
        reading = asyncio.create_task(b.get("/events/shared?after_sequence=-1"))
        await opened(b, "shared", "Question")
        assert (await b.get("/handlers/shared")).status_code == 202
        assert (await b.post("/workflows/ask/run", json={"handler_id": "shared"})).status_code == 409
        sent = await b.post("/events/shared", json={"event": {"type": "Answer", "value": {"response": "b"}}})
        assert sent.json() == {"status": "sent"}
        assert (await ended(b, "shared")).json() == (await ended(a, "shared")).json()
        assert (await b.get("/results/shared")).json()["result"] == {"response": "b"}
        streams = [await client.get("/events/shared?after_sequence=-1") for client in (a, b)]
        assert streams[0].text == streams[1].text == (await reading).text
        assert (await b.get("/events/shared")).status_code == 204
        await a.post("/workflows/slow/run-nowait", json={"handler_id": "cancelled", "start_event": {"key": "never"}})
        await opened(b, "cancelled", "StreamEvent")
        assert (await b.post("/handlers/cancelled/cancel")).json() == {"status": "cancelled"}
        assert (await ended(a, "cancelled")).json()["status"] == "cancelled"
        pages = [(await client.get("/handlers", params={"limit": 1})).json() for client in (a, b)]
        assert pages[0] == pages[1]
        following = await b.get("/handlers", params={"limit": 1, "cursor": pages[0]["next_cursor"]})
        assert [handler["handler_id"] for handler in following.json()["handlers"]] == ["shared"]
        assert (await b.get("/handlers?cursor=nonsense")).status_code == 400
        assert (await b.post("/handlers/shared/cancel?purge=true")).json() == {"status": "deleted"}
        assert (await a.get("/handlers/shared")).status_code == 404


async def test_run_waits_for_a_run_that_the_other_executes(database: str) -> None:
    """The first server has one place, which is taken; the second one takes what waits."""
    async with (
        listening(one(database, concurrent_runs=1)) as here, listening(one(database)),
        httpx.AsyncClient(base_url=here, timeout=60) as a,
    ):  # fmt: skip
        for handler_id in ("first", "second"):
            body = {"handler_id": handler_id, "start_event": {"key": "places"}}
            await a.post("/workflows/slow/run-nowait", json=body)
            await opened(a, handler_id, "StreamEvent")
        body = {"handler_id": "third", "start_event": {"key": "places"}}
        waiting = asyncio.create_task(a.post("/workflows/slow/run", json=body))
        while (await a.get("/handlers/third")).status_code == 404:
            await asyncio.sleep(0.02)
        await opened(a, "third", "StreamEvent")
        flows.Slow.gates["places"].set()
        answer = await waiting
        assert (answer.status_code, answer.json()["result"]["value"]) == (200, {"result": "let go"})


async def test_the_client_reads_on_at_the_other_when_one_stops(database: str) -> None:
    first, second = one(database), one(database)
    async with listening(second) as there:
        proxy = Cutting(there, cuts=0, after=0)
        async with listening(first) as here, httpx.AsyncClient(base_url=here) as http, behind(proxy) as address:
            body = {"handler_id": "moved on", "start_event": {"key": "moved on"}}
            await http.post("/workflows/slow/run-nowait", json=body)
            proxy.to = ("127.0.0.1", int(here.rsplit(":", 1)[1]))
            stream = WorkflowClient(base_url=address).get_workflow_events("moved on")
            seen: list[Any] = []
            async for event in stream:
                seen.append((event.type, stream.last_sequence))
                if len(seen) == 1:
                    proxy.to = ("127.0.0.1", int(there.rsplit(":", 1)[1]))
                    await first.stop()
                    flows.Slow.gates["moved on"].set()
    numbers = [number for _, number in seen]
    assert seen[-1][0] == "StopEvent"
    assert numbers == sorted(set(numbers))
    assert proxy.connections >= 2


async def test_texts_that_a_database_may_not_like_are_kept(database: str) -> None:
    async with listening(one(database)) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:
        note = "a\0b\u2028\U0001f600 \\u0000 'x' %s"
        body = {"start_event": {"numbers": [10**300], "note": note}, "handler_id": "größe 'x' \U0001f600"}
        answer = await http.post("/workflows/add/run", json=body)
        assert answer.json()["result"]["value"] == {"total": 10**300, "note": note}
        got = await http.get(f"/handlers/{body['handler_id']}")
        assert got.json()["result"] == answer.json()["result"]
        for path in (
            "/handlers/%00",
            "/events/%00",
            "/results/a%00b",
            "/handlers?workflow_name=%00",
            "/handlers?cursor=%00",
        ):
            assert (await http.get(path)).status_code in (200, 400, 404)

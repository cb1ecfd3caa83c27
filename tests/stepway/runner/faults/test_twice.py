"""The same asked more than once, at once, of two servers: it is done once."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.stepway.runner.faults.conftest import ANSWER, Errands, begin, ended, numbers, result
from tests.stepway.runner.serving import Server, until

CLIENTS = 20


@pytest.fixture
def servers(errands: Errands) -> Iterator[list[Server]]:
    with errands.server() as first, errands.server() as second:
        yield [first, second]


async def at_once(servers: list[Server], path: str, body: object = None, count: int = CLIENTS) -> list[httpx.Response]:
    async with httpx.AsyncClient(timeout=60) as http:
        return await asyncio.gather(*[http.post(f"{servers[n % 2].url}{path}", json=body) for n in range(count)])


def statuses(answers: list[httpx.Response]) -> Counter[int]:
    return Counter(one.status_code for one in answers)


async def test_one_run_begins(errands: Errands, servers: list[Server]) -> None:
    for n in range(5):
        body = {"handler_id": f"h{n}", "start_event": {"name": f"h{n}", "seconds": 1}}
        answers = await at_once(servers, "/workflows/works/run-nowait", body)
        assert statuses(answers) == {200: 1, 409: CLIENTS - 1}
        begun = next(one.json() for one in answers if one.status_code == 200)
        assert ended(servers[n % 2], f"h{n}")["run_id"] == begun["run_id"]
        assert [what for what, _ in errands.notes(f"h{n}:")] == [f"h{n}:begin", f"h{n}:end"]


async def test_a_handler_begins_again_once(errands: Errands, servers: list[Server]) -> None:
    begin(servers[0], "works", "again", seconds=0)
    ended(servers[0], "again")
    body = {"handler_id": "again", "start_event": {"name": "again", "seconds": 1}}
    assert statuses(await at_once(servers, "/workflows/works/run-nowait", body)) == {200: 1, 409: CLIENTS - 1}
    assert result(servers[1], "again") == "worked"
    assert len(errands.notes("again:end")) == 2
    assert numbers(servers[0], "again") == numbers(servers[1], "again")


async def test_an_answer_is_taken_once(errands: Errands, servers: list[Server]) -> None:
    begin(servers[0], "waits", "asked")
    answers = await at_once(servers, "/events/asked", ANSWER)
    assert set(statuses(answers)) <= {200, 409}
    assert 200 in statuses(answers)
    assert result(servers[1], "asked") == "yes"
    assert len(errands.notes("asked:answered")) == 1
    assert statuses(await at_once(servers, "/events/asked", ANSWER)) == {409: CLIENTS}
    assert errands.query("SELECT count(*) FROM stepway_runner.inbox") == 0


async def test_a_run_is_cancelled_once(errands: Errands, servers: list[Server]) -> None:
    begin(servers[0], "works", "ends")
    until(lambda: errands.notes("ends:begin"))
    answers = await at_once(servers, "/handlers/ends/cancel")
    assert set(statuses(answers)) <= {200, 404}  # it had ended already
    assert 200 in statuses(answers)
    assert ended(servers[1], "ends")["status"] == "cancelled"
    text = servers[1].ask("GET", "/events/ends?after_sequence=-1").text
    assert text.count('"WorkflowCancelledEvent"') == 1
    assert statuses(await at_once(servers, "/handlers/ends/cancel")) == {404: CLIENTS}
    assert errands.query("SELECT count(*) FROM stepway_runner.inbox") == 0


async def test_a_run_is_purged_while_it_runs(errands: Errands, servers: list[Server]) -> None:
    for name, workflow in (("works", "works"), ("waits", "waits")):
        begin(servers[0], workflow, name)
        answers = await at_once(servers, f"/handlers/{name}/cancel?purge=true")
        assert set(statuses(answers)) <= {200, 404}
        assert {one.json()["status"] for one in answers if one.status_code == 200} == {"deleted"}
        for server in servers:
            until(lambda server=server, name=name: server.ask("GET", f"/handlers/{name}").status_code == 404)
    for table in ("handler", "journal", "event", "inbox"):
        until(lambda table=table: errands.query(f"SELECT count(*) = 0 FROM stepway_runner.{table}"))
    begin(servers[1], "works", "works", seconds=0)  # the name is free
    assert result(servers[0], "works") == "worked"
    assert all(server.ask("GET", "/health").status_code == 200 for server in servers)

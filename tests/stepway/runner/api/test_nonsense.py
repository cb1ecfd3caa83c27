"""Whatever is sent, the answer is one of the contract's: never an error of the server's own."""

import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from stepway.runner import Config, WorkflowServer
from tests.stepway.runner.api.conftest import served

ROUNDS = 120
WORDS = [
    "", "StartEvent", "StopEvent", "Sums", "Answer", "os.system", "workflows.events.StopEvent", "builtins.eval", "_data",
    "__is_pydantic", "__is_component", "qualified_name", "value", "type", "types", "data", "self", "result", "_result",
    "\0", "\u2028", "\U0001f600", "x" * 500, "../..", "%00", "-1", "now", "null",
]  # fmt: skip


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[WorkflowServer]:
    made = served(Config(max_body=200_000, drain=1.0))
    async with made:
        yield made


@pytest.fixture
async def http(server: WorkflowServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://localhost") as client:
        yield client


def anything(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(8 if depth < 5 else 6)
    if kind == 6:
        return [anything(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 7:
        return {chance.choice(WORDS): anything(chance, depth + 1) for _ in range(chance.randrange(5))}
    return [None, True, chance.randrange(-5, 5), 10 ** chance.randrange(400), -0.5, chance.choice(WORDS)][kind]


def explained(answer: httpx.Response) -> None:
    body = answer.json()
    if answer.status_code == 500:
        assert body["status"] in ("failed", "cancelled")
    elif answer.status_code >= 400:
        assert list(body) == ["detail"]


@pytest.mark.parametrize("seed", range(3))
async def test_bodies_of_runs(http: httpx.AsyncClient, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(ROUNDS):
        body = {
            name: anything(chance)
            for name in ("start_event", "context", "handler_id", "kwargs")
            if chance.random() < (0.9 if name == "start_event" else 0.2)
        }
        answer = await http.post(f"/workflows/{chance.choice(['greet', 'add'])}/run", json=body)
        assert answer.status_code in (200, 400, 409, 500), body
        explained(answer)


@pytest.mark.parametrize("seed", range(3))
async def test_bodies_of_events(http: httpx.AsyncClient, seed: int) -> None:
    chance = random.Random(seed)
    handler_id = (await http.post("/workflows/ask/run-nowait", json={})).json()["handler_id"]
    for _ in range(ROUNDS):
        answer = await http.post(f"/events/{handler_id}", json={"event": anything(chance), "step": anything(chance)})
        assert answer.status_code in (200, 400, 409)
        explained(answer)
    await http.post(f"/handlers/{handler_id}/cancel")


@pytest.mark.parametrize("seed", range(3))
async def test_bodies_that_are_damaged(http: httpx.AsyncClient, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(ROUNDS):
        body = bytearray(json.dumps({"start_event": anything(chance)}, ensure_ascii=chance.random() < 0.5).encode())
        for _ in range(chance.randrange(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        answer = await http.post("/workflows/greet/run", content=bytes(body))
        assert answer.status_code in (200, 400)
        explained(answer)


@pytest.mark.parametrize("seed", range(3))
async def test_queries(http: httpx.AsyncClient, seed: int) -> None:
    chance = random.Random(seed)
    over = (await http.post("/workflows/greet/run", json={})).json()["handler_id"]
    names = ["status", "workflow_name", "limit", "cursor", "sse", "after_sequence", "include_internal", "purge", "x"]
    for _ in range(ROUNDS):
        query: list[tuple[str, str | int | float | bool | None]] = [
            (chance.choice(names), str(anything(chance, 5))) for _ in range(chance.randrange(6))
        ]
        path = chance.choice(
            ["/handlers", f"/events/{over}", "/events/none", f"/handlers/{over}", f"/results/{over}", "/"]
        )
        answer = await http.get(path, params=query)
        assert answer.status_code in (200, 204, 400, 404), (path, query)


@pytest.mark.parametrize("depth", [50, 150, 190, 199, 201, 250, 1000, 30_000])
async def test_depths(http: httpx.AsyncClient, depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        nested = opening * depth + "1" + closing * depth
        answer = await http.post("/workflows/greet/run", content=f'{{"start_event":{{"name":{nested}}}}}')
        assert answer.status_code == (200 if depth < 195 else 400)
        explained(answer)
        text = json.dumps({"start_event": f'{{"name":{nested}}}'})
        answer = await http.post("/workflows/greet/run", content=text)
        assert answer.status_code in (200, 400, 413)
        explained(answer)

"""Idempotency-Key over a real database: the first answer again, mismatches, requests in flight, crashed ones."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from sqlalchemy import text

from services.app.context import AppContext
from services.app.identity import idempotency_store as store
from services.app.identity.idempotency import Once, ShownOnce, purge
from services.app.identity.idempotency_store import Place
from shared.errors import Problem
from shared.http.bodies import StrictRoute, fingerprint_of
from tests.services.app.conftest import People, Person


class Work:
    """What the routes below do; a test counts it, holds it up, or makes it fail."""

    def __init__(self) -> None:
        self.done = 0
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: Exception | None = None
        self.status = 201

    async def __call__(self) -> Response:
        self.begun.set()
        await self.gate.wait()  # of the moment when it begins: a test may put another one for those who follow
        self.done += 1
        if self.fault is not None:
            raise self.fault
        headers = {"Location": f"/things/{self.done}", "ETag": '"1"'}
        return ShownOnce({"number": self.done, "key": "hunter2"}, {"key"}, self.status, headers)


@pytest.fixture
def work(app: FastAPI) -> Iterator[Work]:
    work = Work()
    router = APIRouter(route_class=StrictRoute)

    @router.post("/things")
    @router.put("/things")
    @router.post("/others")
    async def make(body: dict[str, Any], request: Request, once: Once) -> Response:
        return await once.run(fingerprint_of(request), work)

    app.include_router(router)
    yield work
    work.gate.set()


@pytest.fixture
async def person(people: People) -> Person:
    return await people.add("member")


async def send(
    client: httpx.AsyncClient,
    person: Person,
    key: str | None = "k1",
    path: str = "/things",
    method: str = "POST",
    **body: Any,
) -> httpx.Response:
    headers = {**person.headers, **({"Idempotency-Key": key} if key is not None else {})}
    return await client.request(method, path, json=body, headers=headers)


async def age(app_context: AppContext, by: timedelta) -> None:
    async with app_context.database.transaction() as session:
        await session.execute(text("UPDATE platform.idempotency SET created_at = created_at - :by"), {"by": by})


async def test_without_a_key_each_request_works(client: httpx.AsyncClient, work: Work, person: Person) -> None:
    answers = [await send(client, person, key=None) for _ in range(2)]
    assert [answer.json()["number"] for answer in answers] == [1, 2]
    assert "idempotency-replayed" not in answers[1].headers


async def test_a_repeat_gets_the_first_answer_without_its_secret(
    client: httpx.AsyncClient, work: Work, person: Person
) -> None:
    first = await send(client, person, a=1, b=[2])
    again = await send(client, person, b=[2], a=1)
    assert first.json() == {"number": 1, "key": "hunter2"}
    assert again.json() == {"number": 1, "key": None}
    assert (first.status_code, again.status_code, work.done) == (201, 201, 1)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    for name in ("location", "etag", "content-type"):
        assert again.headers[name] == first.headers[name]


async def test_the_secret_is_not_in_the_table(
    client: httpx.AsyncClient, work: Work, person: Person, app_context: AppContext
) -> None:
    await send(client, person)
    async with app_context.database.statement() as connection:
        rows = (await connection.execute(text("SELECT body FROM platform.idempotency"))).scalars().all()
    assert len(rows) == 1
    assert b"hunter2" not in rows[0]


async def test_a_key_is_of_one_user_method_and_path(
    client: httpx.AsyncClient, work: Work, person: Person, people: People
) -> None:
    other = await people.add("member")
    requests = [
        await send(client, person),
        await send(client, other),
        await send(client, person, path="/others"),
        await send(client, person, method="PUT"),
        await send(client, person, key="k2"),
    ]
    assert [answer.json()["number"] for answer in requests] == [1, 2, 3, 4, 5]


async def test_another_body_is_refused(client: httpx.AsyncClient, work: Work, person: Person) -> None:
    await send(client, person, a=1)
    answer = await send(client, person, a=2)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    assert work.done == 1


@pytest.mark.parametrize("key", ["", "a b", "a" * 256, "sch\u00f6n"])
async def test_odd_keys_are_refused(client: httpx.AsyncClient, work: Work, person: Person, key: str) -> None:
    headers = {**person.headers, "Idempotency-Key": key.encode()}
    answer = await client.post("/things", json={}, headers=headers)  # type: ignore[arg-type]  # bytes are for the odd one
    assert (answer.status_code, answer.json()["code"], work.done) == (400, "invalid_request", 0)


async def test_two_keys_are_refused(client: httpx.AsyncClient, work: Work, person: Person) -> None:
    headers = [("Authorization", f"Bearer {person.key}"), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert (await client.post("/things", json={}, headers=headers)).status_code == 400


async def test_one_in_flight(client: httpx.AsyncClient, work: Work, person: Person) -> None:
    work.gate.clear()
    first = asyncio.create_task(send(client, person))
    await work.begun.wait()
    meanwhile = await send(client, person)
    assert (meanwhile.status_code, meanwhile.json()["code"]) == (409, "idempotency_in_flight")
    assert meanwhile.json()["retryable"] is True
    assert meanwhile.headers["retry-after"] == "1"
    assert (await send(client, person, a=1)).json()["code"] == "idempotency_mismatch"
    work.gate.set()
    assert (await first).json()["number"] == 1
    assert (await send(client, person)).headers["idempotency-replayed"] == "true"


async def test_fifty_at_once_work_once(client: httpx.AsyncClient, work: Work, person: Person) -> None:
    answers = await asyncio.gather(*(send(client, person) for _ in range(50)))
    assert work.done == 1
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert all(answer.json()["number"] == 1 for answer in answers if answer.status_code == 201)


async def test_a_crashed_request_is_taken_over(
    client: httpx.AsyncClient, work: Work, person: Person, app_context: AppContext
) -> None:
    work.gate.clear()
    first = asyncio.create_task(send(client, person))
    await work.begun.wait()
    await age(app_context, timedelta(seconds=61))
    assert (await send(client, person, a=1)).json()["code"] == "idempotency_mismatch"
    frozen, work.gate = work.gate, asyncio.Event()
    work.gate.set()
    second = await send(client, person)
    assert second.json()["number"] == 1
    assert "idempotency-replayed" not in second.headers
    frozen.set()
    assert (await first).json()["number"] == 2
    # Only the one that holds the claim is remembered, though the other ended last.
    assert (await send(client, person)).json()["number"] == 1


async def test_a_sign_of_life_keeps_the_claim(app_context: AppContext, person: Person) -> None:
    database, place = app_context.database, Place(person.id, "k", "POST", "/things")
    token = await store.claim(database, place, "f")
    assert not isinstance(token, store.Earlier)
    await age(app_context, timedelta(seconds=61))
    await store.touch(database, place, token)
    assert await store.claim(database, place, "f") == store.Earlier("f", None)
    await age(app_context, timedelta(seconds=61))
    taken = await store.claim(database, place, "f")
    assert not isinstance(taken, store.Earlier)
    assert taken != token
    await store.release(database, place, token)
    assert await store.claim(database, place, "f") == store.Earlier("f", None)


async def test_refusals_are_kept(client: httpx.AsyncClient, work: Work, person: Person) -> None:
    work.fault = Problem("name_taken", "The name is in use.", param="name")
    first = await send(client, person)
    again = await send(client, person)
    assert (first.status_code, again.status_code, work.done) == (409, 409, 1)
    assert again.json() == first.json()
    assert again.headers["content-type"] == "application/problem+json"
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (RuntimeError("broken"), 500),
        (Problem("unavailable", "Not now."), 503),
        (Problem("rate_limited", "Too many."), 429),
    ],
)
async def test_faults_are_not_kept(
    client: httpx.AsyncClient, work: Work, person: Person, fault: Exception, status: int
) -> None:
    work.fault = fault
    assert (await send(client, person)).status_code == status
    work.fault = None
    again = await send(client, person, another="body")
    assert (again.status_code, again.json()["number"]) == (201, 2)


async def test_a_day_later_the_key_is_new(
    client: httpx.AsyncClient, work: Work, person: Person, app_context: AppContext
) -> None:
    await send(client, person, a=1)
    await age(app_context, timedelta(hours=23))
    assert (await send(client, person, a=1)).json()["number"] == 1
    await age(app_context, timedelta(hours=2))
    assert (await send(client, person, a=2)).json()["number"] == 2


async def test_purge_deletes_what_is_older_than_a_day(
    client: httpx.AsyncClient, work: Work, person: Person, app_context: AppContext
) -> None:
    for number in range(5):
        await send(client, person, key=f"old{number}")
    await age(app_context, timedelta(hours=25))
    await send(client, person, key="new")
    assert await purge(app_context.database, batch=2) == 5
    assert await purge(app_context.database) == 0
    assert (await send(client, person, key="new")).headers["idempotency-replayed"] == "true"

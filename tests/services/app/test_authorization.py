"""Who may do what: every route, called by everyone who there is."""

import re
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from starlette.routing import BaseRoute, Route

from services.app.context import AppContext
from services.app.identity.authenticate import COOKIE
from services.gateway.table import RouteTable
from tests.services.app.authorization import BY_TOKEN, CONFIG, KEY, PEOPLE, TABLE, Row, Things, make_things
from tests.services.app.conftest import People, Person

ORIGIN = {"Origin": "http://test"}
UNUSABLE = {
    "bad key": None,
    "revoked key": "UPDATE platform.api_key SET revoked_at = now() WHERE id = :key",
    "expired key": "UPDATE platform.api_key SET expires_at = now() - interval '1 second' WHERE id = :key",
    "disabled user": 'UPDATE platform."user" SET disabled_at = now() WHERE id = :user',
}


def filled(value: Any, things: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: filled(one, things) for name, one in value.items()}
    return value.format_map(things) if isinstance(value, str) else value


async def changes(app_context: AppContext) -> int:
    async with app_context.database.statement() as connection:
        return int((await connection.execute(text("SELECT count(*) FROM platform.audit"))).scalar_one())


class Caller:
    """Calls one row as somebody."""

    def __init__(self, client: httpx.AsyncClient, context: AppContext, people: People, routes: RouteTable) -> None:
        self._client = client
        self._context = context
        self.people = people
        self._routes = routes

    async def things(self) -> Things:
        return await make_things(self._context, self.people, self._routes)

    async def person(self, who: str, things: Things) -> Person:
        role, membership = PEOPLE[who]
        return await self.people.add(
            role, projects=dict.fromkeys((things.project, things.bare), membership) if membership else {}
        )

    async def call(self, row: Row, things: Things, headers: dict[str, str] | None = None, own_key: str = "none") -> int:
        named = {**things.names, "own_key": own_key}
        before = await changes(self._context)
        answer = await self._client.request(
            row.method, filled(row.path, named), json=filled(row.body, named), headers=headers or {}
        )
        self._client.cookies.clear()
        if answer.status_code >= 400:
            kind = "application/json" if "/v1/" in row.path else "application/problem+json"
            assert answer.headers["content-type"] == kind
        # Whoever is refused has changed nothing; whoever is not has left a trace.
        changed = row.method != "GET" and answer.status_code < 300
        if (row.method, row.path) != ("DELETE", "/login"):  # which may be repeated, and then changes nothing
            assert (await changes(self._context) > before) == changed, answer.text
        return answer.status_code

    async def run(self, statement: str, person: Person) -> None:
        values = {"key": person.key_id} if ":key" in statement else {"user": person.id}
        async with self._context.database.transaction() as session:
            await session.execute(text(statement), values)


@pytest.fixture
def caller(client: httpx.AsyncClient, app_context: AppContext, people: People, routes: RouteTable) -> Caller:
    return Caller(client, app_context, people, routes)


@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_who_may(caller: Caller, row: Row) -> None:
    found = [await caller.call(row, await caller.things())]
    for who in PEOPLE:
        things = await caller.things()
        person = await caller.person(who, things)
        found.append(await caller.call(row, things, person.headers, person.key))
    assert tuple(found) == row.expected


@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_keys_that_are_no_good(caller: Caller, row: Row) -> None:
    """A key that cannot be used is no key, even an admin's."""
    for how, statement in UNUSABLE.items():
        things = await caller.things()
        person = await caller.person("admin", things)
        headers = person.headers
        if statement is None:
            headers = {"Authorization": f"Bearer {person.key[:-4]}0000"}
        else:
            await caller.run(statement, person)
        assert await caller.call(row, things, headers) == row.statuses.nobody, how


@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_keys_that_are_narrow(caller: Caller, row: Row) -> None:
    """An admin's key with one scope, and one that is bound to another project."""
    if row.path == "/login" and row.method != "GET":
        return  # what is shown there is the body's key, or a cookie
    things = await caller.things()
    admin = await caller.person("admin", things)
    is_inference = "/v1/" in row.path
    for scope in ("read", "write", "inference"):
        person = await caller.people.key_for(admin.id, (scope,))
        needed = "inference" if is_inference else "read" if row.method == "GET" else "write"
        status = row.statuses.admin if row.is_open or scope == needed else 403
        assert await caller.call(row, await caller.things(), person.headers, person.key) == status, scope
    elsewhere = await caller.people.key_for(admin.id, only_project=await caller.people.project("elsewhere"))
    assert await caller.call(row, things, elsewhere.headers, elsewhere.key) == row.when_bound()


@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_cookies(caller: Caller, row: Row, client: httpx.AsyncClient) -> None:
    """A cookie stands for its key; to change something the request must come from our own pages, whatever its form."""
    for origin in (ORIGIN, {}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        things = await caller.things()
        admin = await caller.person("admin", things)
        answer = await client.post("/login", json={"key": admin.key}, headers=ORIGIN)
        client.cookies.clear()
        cookie = {"Cookie": f"{COOKIE}={answer.cookies[COOKIE]}"}
        status = await caller.call(row, things, {**cookie, **origin}, admin.key)
        is_safe = (
            row.method == "GET"
            or row.expected == BY_TOKEN
            or (row.path == "/login" and row.method == "POST" and not origin)
        )
        assert status == (row.statuses.admin if origin == ORIGIN or is_safe else 403), origin


def test_the_table_has_every_route(app: FastAPI) -> None:
    """A route that is added must say here who may call it."""
    declared = set(_routes(app.routes))
    listed = {(row.method, _anonymous(row.path.split("?")[0])) for row in TABLE}
    listed = {(method, "/icons/{}" if path.startswith("/icons/") else path) for method, path in listed}
    listed = {(method, "/wizards/{}" if path.startswith("/wizards/") else path) for method, path in listed}
    listed = {(method, re.sub(r"/v1/.*", "/v1/{}", path)) for method, path in listed}
    assert listed == declared


def _routes(routes: Iterable[BaseRoute]) -> Iterable[tuple[str, str]]:
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from _routes(included.routes)
            continue
        assert isinstance(route, Route)
        methods = route.methods or {"GET", "POST"}  # the gateway's says by itself which
        for method in methods - {"HEAD"}:
            yield method, _anonymous(route.path)


def _anonymous(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


@pytest.mark.parametrize(
    ("scopes", "read", "write"), [(("read",), 200, 403), (("write",), 403, 201), (("inference",), 403, 403)]
)
async def test_scopes_narrow_even_an_admin(
    client: httpx.AsyncClient, people: People, scopes: tuple[str, ...], read: int, write: int
) -> None:
    admin = await people.add("admin", scopes=scopes)
    assert (await client.get("/projects", headers=admin.headers)).status_code == read
    assert (await client.post("/projects", json={"name": "p"}, headers=admin.headers)).status_code == write


async def test_a_bound_key_sees_its_project_only(client: httpx.AsyncClient, people: People) -> None:
    mine, other = await people.project("mine"), await people.project("other")
    admin = await people.add("admin", projects={mine: "manager", other: "manager"})
    bound = await people.key_for(admin.id, only_project=mine)
    listed = (await client.get("/projects", headers=bound.headers)).json()["data"]
    assert [one["id"] for one in listed] == [str(mine)]
    assert (await client.get(f"/projects/{other}", headers=bound.headers)).status_code == 404
    assert (await client.get(f"/projects/{mine}", headers=bound.headers)).status_code == 200
    for path, body in (
        ("/projects", {"name": "x"}), ("/templates", {"name": "x", "deploy_config": CONFIG}), ("/users", {"name": "x"}),
        ("/credentials", {"name": "x", "type": "openai", "fields": KEY}),
    ):  # fmt: skip
        assert (await client.post(path, json=body, headers=bound.headers)).status_code == 403, path
    memberships = (await client.get("/me", headers=bound.headers)).json()["memberships"]
    assert [one["project_id"] for one in memberships] == [str(mine)]

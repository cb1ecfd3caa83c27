"""API keys: shown once, never beyond the key that made them, revoked for ever."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text

from services.app.context import AppContext
from services.app.identity import keys
from shared.clock import iso, now
from tests.services.app.conftest import People, Person


async def make(client: httpx.AsyncClient, person: Person, **body: Any) -> httpx.Response:
    return await client.post("/keys", json={"name": "k", **body}, headers=person.headers)


async def test_a_key_is_shown_once_and_works(
    client: httpx.AsyncClient, people: People, app_context: AppContext
) -> None:
    member = await people.add("member")
    answer = await make(client, member, scopes=["read"])
    view = answer.json()
    key = view.pop("key")
    assert (answer.status_code, answer.headers["location"], answer.headers["cache-control"]) == (
        201, f"/keys/{view['id']}", "no-store",
    )  # fmt: skip
    assert (await client.get("/me", headers={"Authorization": f"Bearer {key}"})).json()["key"]["id"] == view["id"]
    shown = (await client.get(f"/keys/{view['id']}", headers=member.headers)).json()
    assert {**shown, "last_used_at": None} == view
    assert shown["last_used_at"] is not None
    assert shown["prefix"].startswith("sk_stepway_")
    listed = (await client.get("/keys", headers=member.headers)).text
    assert view["id"] in listed
    assert key not in listed
    async with app_context.database.statement() as connection:
        stored = (await connection.execute(text("SELECT to_jsonb(k)::text FROM platform.api_key k"))).scalars().all()
    assert key not in str(stored)


async def test_a_replay_does_not_show_the_key(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    headers = {**member.headers, "Idempotency-Key": "one"}
    first = (await client.post("/keys", json={"name": "k"}, headers=headers)).json()
    again = await client.post("/keys", json={"name": "k"}, headers=headers)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    assert again.json() == {**first, "key": None}
    assert (await client.get("/keys", headers=member.headers)).json()["total"] == 2


@pytest.mark.parametrize("scopes", [["write"], ["read", "write"], ["inference"]])
async def test_no_scope_beyond_ones_own(client: httpx.AsyncClient, people: People, scopes: list[str]) -> None:
    member = await people.add("member")
    narrow = await people.key_for(member.id, scopes=("write",))
    answer = await make(client, narrow, scopes=scopes)
    if scopes == ["write"]:
        assert answer.json()["scopes"] == ["write"]
    else:
        assert (answer.status_code, answer.json()["param"]) == (422, "scopes")


async def test_scopes_default_to_ones_own(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    narrow = await people.key_for(member.id, scopes=("read", "write"))
    assert (await make(client, narrow)).json()["scopes"] == ["read", "write"]
    assert (await make(client, narrow, scopes=[])).status_code == 422


async def test_a_bound_key_makes_bound_keys(client: httpx.AsyncClient, people: People) -> None:
    mine, other = await people.project("mine"), await people.project("other")
    admin = await people.add("admin")
    bound = await people.key_for(admin.id, only_project=mine)
    assert (await make(client, bound)).json()["project_id"] == str(mine)
    answer = await make(client, bound, project_id=str(other))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "reference_not_found")
    assert (await make(client, admin, project_id=str(other))).json()["project_id"] == str(other)
    listed = (await client.get("/keys", headers=bound.headers)).json()["data"]
    assert {one["project_id"] for one in listed} == {str(mine)}
    assert (await client.get(f"/keys/{admin.key_id}", headers=bound.headers)).status_code == 404


async def test_a_project_that_one_does_not_see(client: httpx.AsyncClient, people: People) -> None:
    project = await people.project("p")
    member = await people.add("member")
    assert (await make(client, member, project_id=str(project))).status_code == 422
    assert (await make(client, member, project_id=str(uuid4()))).status_code == 422


async def test_expiry(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    until = iso(now() + timedelta(days=2))
    assert (await make(client, member, expires_at=until)).json()["expires_at"] == until
    lasting = (await make(client, member, expires_in_days=3)).json()
    assert iso(now() + timedelta(days=2)) < lasting["expires_at"] < iso(now() + timedelta(days=4))
    for body in ({"expires_at": iso(now() - timedelta(days=1))}, {"expires_at": "2026-01-01T00:00:00"},
                 {"expires_at": "9999-12-31T23:59:59-14:00"}, {"expires_at": "0001-01-01T00:00:00+14:00"},
                 {"expires_in_days": 0}, {"expires_at": until, "expires_in_days": 1}):  # fmt: skip
        assert (await make(client, member, **body)).status_code == 422


async def test_a_key_does_not_outlive_the_one_that_made_it(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    parent = (await make(client, member, expires_in_days=1)).json()
    person = Person(member.id, parent["id"], parent["key"])
    child = (await make(client, person)).json()
    assert child["expires_at"] == parent["expires_at"]
    refused = await make(client, person, expires_in_days=2)
    assert (refused.status_code, refused.json()["param"]) == (422, "expires_in_days")


async def test_an_expired_key_is_none(client: httpx.AsyncClient, people: People, app_context: AppContext) -> None:
    member = await people.add("member")
    key = (await make(client, member, expires_in_days=1)).json()
    async with app_context.database.transaction() as session:
        await session.execute(
            text("UPDATE platform.api_key SET expires_at = now() - interval '1 s' WHERE id = :id"), {"id": key["id"]}
        )
    assert (await client.get("/me", headers={"Authorization": f"Bearer {key['key']}"})).status_code == 401
    assert (await client.get(f"/keys/{key['id']}", headers=member.headers)).json()["state"] == "expired"


async def test_only_admins_make_and_see_the_keys_of_others(client: httpx.AsyncClient, people: People) -> None:
    admin, operator, member = await people.add("admin"), await people.add("operator"), await people.add("member")
    assert (await make(client, operator, user_id=str(member.id))).status_code == 403
    made = (await make(client, admin, user_id=str(member.id))).json()
    assert made["user_id"] == str(member.id)
    me = (await client.get("/me", headers={"Authorization": f"Bearer {made['key']}"})).json()
    assert (me["id"], me["role"]) == (str(member.id), "member")
    assert (await client.get(f"/keys?user_id={member.id}", headers=operator.headers)).status_code == 403
    assert (await client.get(f"/keys?user_id={member.id}", headers=admin.headers)).json()["total"] == 2
    assert (await client.get("/keys", headers=admin.headers)).json()["total"] == 4
    for method in ("GET", "DELETE"):
        assert (await client.request(method, f"/keys/{made['id']}", headers=operator.headers)).status_code == 404
    unknown = await make(client, admin, user_id=str(uuid4()))
    assert (unknown.status_code, unknown.json()["code"]) == (422, "reference_not_found")


async def test_revoking_holds_at_once_and_may_be_repeated(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    made = (await make(client, member)).json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert (await client.get("/me", headers=headers)).status_code == 200
    for _ in range(2):
        assert (await client.delete(f"/keys/{made['id']}", headers=member.headers)).status_code == 204
    assert (await client.get("/me", headers=headers)).status_code == 401
    shown = (await client.get(f"/keys/{made['id']}", headers=member.headers)).json()
    assert (shown["state"], shown["revision"]) == ("revoked", 2)
    assert shown["revoked_at"] is not None


async def test_a_user_has_so_many_keys_at_most(
    client: httpx.AsyncClient, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "USABLE_KEYS", 2)
    member = await people.add("member")
    made = (await make(client, member)).json()
    assert (await make(client, member)).json()["code"] == "quota_exceeded"
    await client.delete(f"/keys/{made['id']}", headers=member.headers)
    assert (await make(client, member)).status_code == 201


async def test_read_keys_change_nothing(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    reader = await people.key_for(member.id, scopes=("read",))
    assert (await make(client, reader)).status_code == 403
    assert (await client.delete(f"/keys/{member.key_id}", headers=reader.headers)).status_code == 403
    assert (await client.get("/keys", headers=reader.headers)).status_code == 200

"""Logins: the cookie, where it may be used from, and that it ends with its key."""

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from services.app.context import AppContext
from services.app.identity.authenticate import COOKIE, LOGIN_WINDOW, LOGINS
from shared.http.ratelimit import RateLimiter
from tests.services.app.conftest import People

ORIGIN = {"Origin": "http://test"}


async def test_a_login_stands_for_its_key(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    answer = await client.post("/login", json={"key": member.key}, headers=ORIGIN)
    cookie = answer.headers["set-cookie"]
    assert (answer.status_code, answer.json()["id"]) == (200, str(member.id))
    for part in (f"{COOKIE}=", "HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"):
        assert part in cookie
    assert "Secure" not in cookie
    assert member.key not in answer.text + cookie
    assert (await client.get("/login")).json()["key"]["id"] == str(member.key_id)
    made = await client.post("/keys", json={"name": "by cookie"}, headers=ORIGIN)
    assert made.status_code == 201


async def test_the_cookie_is_secure_over_https(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    answer = await client.post("https://test/login", json={"key": member.key})
    assert "Secure" in answer.headers["set-cookie"]
    behind_a_proxy = await client.post("/login", json={"key": member.key}, headers={"Origin": "https://test"})
    assert "Secure" in behind_a_proxy.headers["set-cookie"]


@pytest.mark.parametrize("origin", [None, "http://evil.example", "null", "http://test.evil.example"])
async def test_changes_by_cookie_need_our_origin(client: httpx.AsyncClient, people: People, origin: str | None) -> None:
    member = await people.add("member")
    await client.post("/login", json={"key": member.key})
    headers = {"Origin": origin} if origin else {}
    for method, path in (("POST", "/keys"), ("DELETE", "/login"), ("DELETE", f"/keys/{member.key_id}")):
        answer = await client.request(method, path, json={"name": "x"} if path == "/keys" else None, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")
    assert (await client.get("/login")).status_code == 200


async def test_a_foreign_page_logs_nobody_in(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    answer = await client.post("/login", json={"key": member.key}, headers={"Origin": "http://evil.example"})
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)


async def test_wrong_keys(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    other = ("0" if member.key[-8] != "0" else "1").join([member.key[:-8], member.key[-7:]])
    for key in ("hunter2", other, member.key + "x", "\u00e4"):
        answer = await client.post("/login", json={"key": key})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert key not in answer.json()["detail"]
    refused = await client.post("/login", json={"key": "hunter2" * 100})
    assert refused.status_code == 422
    assert "hunter2" not in refused.text
    assert (await client.get("/login")).status_code == 401


async def test_logging_out_ends_the_login(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    await client.post("/login", json={"key": member.key})
    value = client.cookies[COOKIE]
    assert (await client.get("/me")).status_code == 200
    answer = await client.delete("/login", headers=ORIGIN)
    assert answer.status_code == 204
    assert COOKIE not in client.cookies
    assert (await client.get("/me", headers={"Cookie": f"{COOKIE}={value}"})).status_code == 401
    assert (await client.delete("/login")).status_code == 204


async def test_a_login_ends_with_its_key(client: httpx.AsyncClient, people: People) -> None:
    admin, member = await people.add("admin"), await people.add("member")
    await client.post("/login", json={"key": member.key})
    assert (await client.get("/me")).status_code == 200
    await client.delete(f"/keys/{member.key_id}", headers=admin.headers)
    assert (await client.get("/me")).status_code == 401


async def test_a_reader_may_log_out(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    reader = await people.key_for(member.id, scopes=("read",))
    await client.post("/login", json={"key": reader.key})
    assert (await client.post("/keys", json={"name": "x"}, headers=ORIGIN)).status_code == 403
    assert (await client.delete("/login", headers=ORIGIN)).status_code == 204
    assert (await client.get("/me")).status_code == 401


async def test_expired_logins_are_none_and_go(
    client: httpx.AsyncClient, people: People, app_context: AppContext
) -> None:
    member = await people.add("member")
    await client.post("/login", json={"key": member.key})
    async with app_context.database.transaction() as session:
        await session.execute(text("UPDATE platform.login SET expires_at = now() - interval '1 s'"))
    assert (await client.get("/me")).status_code == 401
    await client.post("/login", json={"key": member.key})
    async with app_context.database.statement() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM platform.login"))).scalar_one() == 1
    assert (await client.get("/me")).status_code == 200


async def test_only_the_hash_of_the_cookie_is_kept(
    client: httpx.AsyncClient, people: People, app_context: AppContext
) -> None:
    member = await people.add("member")
    await client.post("/login", json={"key": member.key})
    async with app_context.database.statement() as connection:
        stored = (await connection.execute(text("SELECT to_jsonb(l)::text FROM platform.login l"))).scalar_one()
    assert client.cookies[COOKIE] not in stored


async def test_tries_are_few(app: FastAPI, client: httpx.AsyncClient, people: People) -> None:
    """From one address, whatever keys it tries; who has a key already goes on with it."""
    app.state.authenticator.login_limiter = RateLimiter(LOGINS, LOGIN_WINDOW, clock=lambda: 0.0)  # no time passes
    member = await people.add("member")
    answers = [(await client.post("/login", json={"key": f"hunter{n}"})).status_code for n in range(LOGINS + 1)]
    assert answers == [401] * LOGINS + [429]
    refused = await client.post("/login", json={"key": member.key})
    assert (refused.status_code, int(refused.headers["Retry-After"]) >= 1) == (429, True)
    assert (await client.get("/me", headers=member.headers)).status_code == 200

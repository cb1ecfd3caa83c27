"""Who may call a workflow server: with a platform's keys, with one of its own, and while the platform is away."""

import asyncio
import logging
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest

from stepway.runner.api import auth
from stepway.runner.api.auth import StaticKey
from stepway.runner.config import Config
from stepway.runner.server import WorkflowServer
from tests.stepway.runner.api.conftest import listening
from tests.stepway.runner.joined.conftest import Greet, Join, Site, until

READ, RUN = ("GET", "/handlers"), ("POST", "/workflows/greet/run")


async def test_roles_hold(site: Site, join: Join) -> None:
    joined = await join()
    await joined.registered()
    people, project = site.people, site.project_id
    elsewhere = await people.project(uuid4().hex)
    member = await people.add("member", projects={project: "member"})
    for person, read, run in (
        (member, 200, 200),
        (await people.add("viewer", projects={project: "viewer"}), 200, 403),
        (await people.add("member", projects={project: "viewer"}), 200, 403),
        (await people.add("viewer", projects={project: "member"}), 200, 403),
        (await people.add("member", projects={elsewhere: "manager"}), 403, 403),
        (await people.add("operator"), 200, 200),
        (await people.key_for(member.id, only_project=project), 200, 200),
        (await people.key_for(member.id, only_project=elsewhere), 403, 403),
        (await people.key_for(member.id, scopes=("read",)), 200, 403),
        (await people.key_for(member.id, scopes=("inference",)), 403, 403),
    ):
        answers = [(await joined.ask(*READ, person)).status_code, (await joined.ask(*RUN, person, json={})).status_code]
        assert answers == [read, run], person


async def test_ways_to_show_a_key(site: Site, join: Join) -> None:
    joined = await join()
    await joined.registered()
    key, other = site.owner.key, (await site.people.add("operator")).key
    bearer = f"Bearer {key}"
    for headers, status in (
        ({"Authorization": bearer}, 200), ({"authorization": f"bearer  {key} "}, 200), ({"X-API-Key": key}, 200),
        ({"X-API-Key": key, "Authorization": bearer}, 200), ({"X-API-Key": other, "Authorization": bearer}, 401),
        ({}, 401), ({"Authorization": key}, 401), ({"Authorization": f"Basic {key}"}, 401), ({"X-API-Key": ""}, 401),
        ({"Authorization": f"Bearer {key[:-1]}"}, 401), ({"Authorization": "Bearer " + "x" * 513}, 401),
        ({"Authorization": f"Bearer {key}", "X-API-Key": "\u00e9"}, 401), ({"Cookie": f"stepway_session={key}"}, 401),
    ):  # fmt: skip
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        answer = await joined.client.get("/workflows", headers=sent)
        assert answer.status_code == status, headers
        if status == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            assert list(answer.json()) == ["detail"]
    for path in ("/", "/openapi.json", "/workflows/greet/schema", "/events/x", "/results/x"):
        assert (await joined.client.get(path)).status_code == 401, path
    assert (await joined.client.get("/health")).status_code == 200


async def test_the_platform_is_asked_once_in_a_while(site: Site, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = await join()
    await joined.registered()
    before = site.asked.count("GET /me")
    for _ in range(20):
        await joined.ask(*READ)
    assert site.asked.count("GET /me") == before
    bad = {"Authorization": "Bearer sk_stepway_nobody"}
    for _ in range(20):
        assert (await joined.client.get("/handlers", headers=bad)).status_code == 401
    assert site.asked.count("GET /me") == before + 1
    monkeypatch.setattr(auth, "FRESH", 0.0)
    await joined.ask(*READ)
    assert site.asked.count("GET /me") == before + 2


async def test_a_revoked_key_is_refused_within_the_time_it_is_remembered(
    site: Site, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "FRESH", 0.3)
    joined = await join()
    await joined.registered()
    person = await site.people.add("member", projects={site.project_id: "member"})
    assert (await joined.run("greet", "one", person)).status_code == 200
    assert (await site.send("DELETE", f"/keys/{person.key_id}", person)).status_code == 204

    async def refused() -> bool:
        return (await joined.run("greet", uuid4().hex, person)).status_code == 401

    await until(refused)
    assert (await joined.ask(*READ)).status_code == 200  # others go on


async def _to_the_end(lines: AsyncIterator[str]) -> None:
    async for _ in lines:
        pass


async def test_a_stream_breaks_off_with_its_key(site: Site, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "FRESH", 0.3)
    joined = await join(heartbeat=0.1)
    person = await site.people.add("viewer", projects={site.project_id: "viewer"})
    async with listening(joined.server) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        await joined.registered()
        await joined.run("sleep", "one")
        async with client.stream("GET", "/events/one", headers=person.headers) as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == ": heartbeat"
            assert (await site.send("DELETE", f"/keys/{person.key_id}", person)).status_code == 204
            with pytest.raises(httpx.RemoteProtocolError):
                await asyncio.wait_for(_to_the_end(lines), 30)
        assert (await client.get("/events/one", headers=person.headers)).status_code == 401


async def test_known_keys_hold_while_the_platform_is_away(
    site: Site, join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    joined = await join()
    await joined.registered()
    stranger = await site.people.add("member", projects={site.project_id: "member"})
    await site.stop()
    monkeypatch.setattr(auth, "FRESH", 0.0)
    assert (await joined.run("greet", "one")).status_code == 200
    unknown = await joined.ask(*READ, stranger)
    assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "1")
    monkeypatch.setattr(auth, "GRACE", -1.0)
    assert (await joined.ask(*READ)).status_code == 503
    await site.start()

    async def back() -> bool:
        return (await joined.ask(*READ, stranger)).status_code == 200

    await until(back)
    assert not any(one in caplog.text for one in (site.owner.key, stranger.key))


async def test_a_key_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    config = Config(key="a-key-of-ours")
    assert "a-key" not in repr(config)
    server = WorkflowServer(config)
    server.add_workflow("greet", Greet())
    transport = httpx.ASGITransport(app=server.app)
    with caplog.at_level(logging.DEBUG):
        async with server, httpx.AsyncClient(transport=transport, base_url="http://flows.example") as client:
            for headers, status in (
                ({"X-API-Key": "a-key-of-ours"}, 200), ({"Authorization": "Bearer a-key-of-ours"}, 200), ({}, 401),
                ({"X-API-Key": "a-key-of-our"}, 401), ({"Authorization": "Bearer A-KEY-OF-OURS"}, 401),
            ):  # fmt: skip
                assert (await client.get("/workflows", headers=headers)).status_code == status, headers
            assert (await client.get("/health")).status_code == 200
    assert "a-key" not in caplog.text


@pytest.mark.parametrize("key", ["", "two words", "é", "x" * 513])
def test_keys_that_no_header_could_carry(key: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII") as refused:
        StaticKey(key)
    assert not key or key not in str(refused.value)

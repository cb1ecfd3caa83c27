"""Runs of a workflow server as they are seen, and cancelled, on a platform that comes and goes."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from services.app.workflow_servers import service
from stepway.runner import told
from stepway.runner.store.postgres import PostgresStore
from tests import postgres
from tests.stepway.runner.joined.conftest import Join, Site, until
from tests.stepway.runner.stores import new_database


@pytest.fixture
def durable() -> Iterator[str]:
    """The URL of a database with a store of runs."""
    url = new_database()
    yield url
    postgres.server().drop(url)


async def test_runs_are_seen(site: Site, join: Join) -> None:
    joined = await join(public_url="http://flows.example:8080")
    await joined.registered()
    [server] = await site.servers()
    assert (server["name"], server["state"], server["url"]) == ("flows", "online", "http://flows.example:8080")
    assert server["workflows"] == ["greet", "fail", "sleep"]
    served = (await site.get(f"/workflow-servers/{server['id']}/workflows"))["data"]
    assert served[0]["start_schema"]["title"] == "StartEvent"

    answer = await joined.run("greet", "one", name="a secret")
    assert answer.json()["result"]["value"]["result"] == "Hello, a secret!"
    shown = await site.run("one", "completed")
    assert (shown["run_id"], shown["workflow"]) == (answer.json()["run_id"], "greet")
    assert shown["started_by"] == str(site.owner.id)
    assert shown["completed_at"] >= shown["started_at"]
    assert "secret" not in str(shown)
    log = await site.people.add("admin")
    entries = (await site.send("GET", "/audit?action=workflow_run.start", log)).json()["data"]
    assert [one["details"]["on_behalf_key_id"] for one in entries] == [str(site.owner.key_id)]


async def test_an_error_is_told_without_secrets(site: Site, join: Join) -> None:
    joined = await join()
    await joined.registered()
    await joined.run("fail", "one", message="no answer of https://u:hunter2@db/x, password=hunter2\nhunter2")
    error = (await site.run("one", "failed"))["error"]
    assert "no answer of" in error
    assert "hunter2" not in error


async def test_a_run_is_cancelled_from_the_platform(site: Site, join: Join) -> None:
    joined = await join()
    await joined.registered()
    for handler in ("one", "two"):
        await joined.run("sleep", handler)
    run = await site.run("one", "running")
    assert (await site.send("POST", f"/workflow-runs/{run['id']}/cancel")).status_code == 202
    ended = await site.run("one", "cancelled")
    assert ended["cancel"]["state"] == "over"
    assert joined.sleep.ended == ["cancelled"]
    assert (await joined.ask("GET", "/handlers/one")).json()["status"] == "cancelled"
    assert (await site.run("two"))["status"] == "running"


async def test_the_platform_may_be_away(site: Site, join: Join) -> None:
    joined = await join()
    await joined.registered()
    await joined.run("sleep", "waits")
    await joined.run("greet", "before")
    await site.run("before", "completed")
    await site.stop()
    for number in range(5):
        assert (await joined.run("greet", f"away{number}")).status_code == 200
    assert (await joined.ask("POST", "/handlers/waits/cancel")).status_code == 200
    await site.start()
    for number in range(5):
        await site.run(f"away{number}", "completed")
    await site.run("waits", "cancelled")
    assert len(await site.runs()) == 7
    assert len(await site.servers()) == 1


async def test_a_server_starts_without_its_platform(site: Site, join: Join) -> None:
    await site.stop()
    joined = await join()
    assert (await joined.client.get("/health")).status_code == 200
    refused = await joined.run("greet", "one")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    await site.start()
    await joined.registered()
    assert (await joined.run("greet", "one")).status_code == 200
    await site.run("one", "completed")


async def test_a_forgotten_server_registers_anew(site: Site, join: Join) -> None:
    joined = await join()
    await joined.registered()
    await joined.run("greet", "one")
    first = (await site.run("one", "completed"))["server_id"]
    assert (await site.send("DELETE", f"/workflow-servers/{first}")).status_code == 204
    assert (await site.run("one", "completed"))["server_id"] != first


async def test_many_runs_are_told_in_several_reports(site: Site, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_CHANGES", 7)
    joined = await join()
    await joined.registered()
    await site.stop()
    for number in range(30):
        await joined.run("greet", f"r{number}")
    await site.start()

    async def all_told() -> bool:
        return len(await site.runs(status="completed")) == 30

    await until(all_told)
    assert len({one["run_id"] for one in await site.runs()}) == 30


async def test_a_run_that_is_refused_keeps_back_no_other(
    site: Site, join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest = told.run

    def broken(handler: Any, key: str | None) -> dict[str, Any]:
        return {**honest(handler, key), **({"workflow": ""} if handler.handler_id == "r3" else {})}

    monkeypatch.setattr(told, "run", broken)
    joined = await join()
    await joined.registered()
    await site.stop()
    for number in range(6):
        await joined.run("greet", f"r{number}")
    await site.start()
    for number in (0, 1, 2, 4, 5):
        await site.run(f"r{number}", "completed")
    assert len(await site.runs()) == 5
    seen = len(site.asked)

    async def goes_on() -> bool:
        return len(site.asked) > seen + 5

    await until(goes_on)
    assert sum("does not take a run" in one.message for one in caplog.records) == 1


async def test_a_purged_run_is_known_to_be_gone(site: Site, join: Join) -> None:
    joined = await join()
    await joined.registered()
    await joined.run("sleep", "one")
    await site.run("one", "running")
    assert (await joined.ask("POST", "/handlers/one/cancel?purge=true")).json() == {"status": "deleted"}

    async def is_over() -> bool:
        return (await site.run("one"))["status"] in ("unknown", "cancelled")

    await until(is_over)


async def test_what_was_missed_is_asked_for(site: Site, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = await join()
    await joined.registered()
    await joined.run("greet", "one")
    run = await site.run("one", "completed")
    # As if the report of its end had never been written.
    await site.execute("UPDATE platform.workflow_run SET status = 'running' WHERE run_id = :id", id=run["run_id"])
    monkeypatch.setattr(service, "ASK_AFTER", 0.0)
    await site.run("one", "completed")


async def test_a_server_says_that_it_stops(site: Site, join: Join) -> None:
    joined = await join()
    await joined.registered()
    await joined.run("sleep", "one")
    await site.run("one", "running")
    await joined.server.stop()
    [server] = await site.servers()
    assert server["state"] == "stopped"
    assert (await site.run("one"))["status"] == "unknown"  # it was in memory
    again = await join()
    await again.registered()
    [server] = await site.servers()
    assert server["state"] == "online"


async def test_two_servers_of_one_name_are_two(site: Site, join: Join) -> None:
    """The second one is taken for the first one, started anew; the first one then takes a place of its own."""
    first = await join()
    await first.registered()
    await first.run("sleep", "one")
    await site.run("one", "running")
    second = await join()
    await second.registered()

    async def both() -> bool:
        states = [one["state"] for one in await site.servers()]
        return states == ["online", "online"]

    await until(both)
    await second.run("greet", "two")
    await site.run("two", "completed")

    async def told_again() -> bool:
        return sorted(one["status"] for one in await site.runs(handler_id="one")) == ["running", "unknown"]

    await until(told_again)


async def test_runs_outlive_their_server(site: Site, join: Join, durable: str) -> None:
    first = await join(PostgresStore(durable), database=durable)
    await first.registered()
    for handler in ("waits", "ends"):
        await first.run("sleep", handler)
        await site.run(handler, "running")
    await first.run("greet", "one")
    await site.run("one", "completed")
    await first.server.stop()
    [server] = await site.servers()
    assert (server["state"], server["durable"]) == ("stopped", True)
    assert {one["status"] for one in await site.runs()} == {"running", "completed"}

    await site.stop()
    second = await join(PostgresStore(durable), database=durable, platform_project=str(site.project_id))
    await second.server.runs.cancel("ends", purge=False)  # while nobody is told
    await site.start()
    await site.run("ends", "cancelled")
    run = await site.run("waits", "running")
    assert (await site.send("POST", f"/workflow-runs/{run['id']}/cancel")).status_code == 202
    await site.run("waits", "cancelled")
    assert second.sleep.ended
    await second.registered()
    await second.run("greet", "two")
    await site.run("two", "completed")
    assert len(await site.runs()) == 4
    assert len(await site.servers()) == 1


async def test_servers_that_share_a_store_are_one(site: Site, join: Join, durable: str) -> None:
    servers = [await join(PostgresStore(durable), database=durable) for _ in range(2)]
    for number, one in enumerate(servers):
        await one.registered()
        await one.run("greet", f"greet{number}")
        await one.run("sleep", f"sleep{number}")
    for number in range(2):
        await site.run(f"greet{number}", "completed")
        run = await site.run(f"sleep{number}", "running")
        await site.send("POST", f"/workflow-runs/{run['id']}/cancel")
    for number in range(2):
        await site.run(f"sleep{number}", "cancelled")
    assert len(await site.servers()) == 1
    assert len(await site.runs()) == 4


async def test_a_key_that_is_refused_stops_no_run(site: Site, join: Join, caplog: pytest.LogCaptureFixture) -> None:
    joined = await join()
    await joined.registered()
    other = await site.people.add("member", projects={site.project_id: "member"})
    assert (await joined.run("greet", "one", other)).status_code == 200
    await site.run("one", "completed")
    revoked = await site.send("DELETE", f"/keys/{site.owner.key_id}")
    assert revoked.status_code == 204
    with caplog.at_level(logging.WARNING, "stepway.runner.platform"):

        async def warned() -> bool:
            return any("refuses (401)" in one.message for one in caplog.records)

        await until(warned)
    assert (await joined.run("greet", "two", other)).status_code == 200
    assert site.owner.key not in caplog.text

"""Runs of workflow servers: told in any order and more than once, listed, cancelled."""

from typing import Any

import pytest

from tests.services.app.workflow_servers.conftest import Place, told

STALE = "UPDATE platform.workflow_run SET confirmed_at = now() - interval '61 seconds' WHERE run_id = :run"


async def test_a_report_that_comes_twice_counts_once(place: Place) -> None:
    for _ in range(2):
        answer = await place.report(told("a"), told("b", "completed", 2), position="p1")
        assert answer["position"] == "p1"
    assert await place.runs() == {"a": "running", "b": "completed"}
    # `after` says what the new position follows: a second server over the same store does not move it back.
    assert (await place.report(after="p1", position="p2"))["position"] == "p2"
    assert (await place.report(after="p1", position="other"))["position"] == "p2"
    assert (await place.register())["position"] == "p2"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ([("running", 1), ("completed", 2)], "completed"), ([("completed", 2), ("running", 1)], "completed"),
        ([("completed", 2), ("running", 3)], "completed"), ([("failed", 2), ("completed", 1)], "failed"),
        ([("running", 5), ("completed", 2)], "completed"), ([("completed", 2), ("cancelled", 3)], "cancelled"),
    ],
)  # fmt: skip
async def test_the_newest_of_what_is_told_holds(place: Place, changes: list[tuple[str, int]], status: str) -> None:
    for told_status, at in changes:
        await place.report(told("a", told_status, at))
    assert await place.runs() == {"a": status}
    await place.report(*[told("b", told_status, at) for told_status, at in changes])
    assert set(await place.runs()) == {"a", "b"}


async def test_a_run_of_which_nothing_is_told_is_asked_for(place: Place) -> None:
    await place.report(told("a"), told("b"), told("c", "failed"))
    assert (await place.report())["questions"] == []
    for run in "abc":
        await place.execute(STALE, run=run)
    asked = (await place.report())["questions"]
    assert sorted(one["run_id"] for one in asked) == ["a", "b"]
    assert (await place.report(told("a"), gone=["b", "c", "never"]))["questions"] == []
    assert await place.runs() == {"a": "running", "b": "unknown", "c": "failed"}
    await place.report(told("b", "completed", 5))
    assert (await place.runs())["b"] == "completed"


async def test_a_run_is_cancelled_by_its_server(place: Place) -> None:
    await place.report(told("a"))
    asked = await place.cancel("a")
    assert (asked.status_code, asked.json()["status"], asked.json()["cancel"]["state"]) == (202, "running", "asked")
    [command] = (await place.report())["commands"]
    assert command == {"id": asked.json()["id"], "kind": "cancel", "handler_id": "h-a", "run_id": "a"}
    assert (await place.report())["commands"] == [command]  # until it is taken
    assert (await place.report(taken=[command["id"]]))["commands"] == []
    assert (await place.run("a"))["cancel"]["state"] == "taken"
    assert (await place.cancel("a")).status_code == 202  # once more
    assert (await place.report())["commands"] == [command]
    await place.report(told("a", "cancelled", 4))
    ended = await place.run("a")
    assert (ended["status"], ended["cancel"]["state"]) == ("cancelled", "over")
    assert ended["cancel"]["asked_by"] == str(place.member.id)
    late = await place.cancel("a")
    assert (late.status_code, late.json()["code"]) == (409, "run_ended")
    assert (await place.report())["commands"] == []


async def test_a_server_hears_only_of_its_own_runs(place: Place) -> None:
    await place.report(told("a"))
    await place.cancel("a")
    first = place.server
    await place.register(instance="other")
    assert (await place.report(told("a"), gone=["a"]))["commands"] == []
    assert (await place.get("/workflow-runs", server_id=first["id"]))["data"][0]["status"] == "running"


async def test_runs_are_found(place: Place) -> None:
    await place.report(told("a"), told("b", "failed", 1, workflow="ask", error="no"), told("c", "completed", 2))
    server = place.server["id"]
    for query, found in (
        ({"status": "failed"}, "b"), ({"workflow": "greet"}, "ac"), ({"handler_id": "h-c"}, "c"), ({"server_id": server}, "abc"),
        ({"since": "2026-01-02T03:04:00Z"}, "abc"), ({"until": "2026-01-02T03:04:00Z"}, ""), ({"search": "H-B"}, "b"),
        ({"project_id": str(place.project_id)}, "abc"), ({"started_by": str(place.member.id)}, ""),
    ):  # fmt: skip
        assert set(await place.runs(**query)) == set(found), query
    seen, cursor = [], None
    while True:
        page = await place.get(
            "/workflow-runs", limit=2, order_by="updated_at", **({"cursor": cursor} if cursor else {})
        )
        seen += [one["run_id"] for one in page["data"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == ["a", "b", "c"]
    shown = await place.get(f"/workflow-runs/{(await place.run('b'))['id']}")
    assert (shown["error"], shown["server"], shown["server_state"]) == ("no", "greeter", "online")


async def test_the_newest_runs_are_kept_and_those_that_go_on(place: Place) -> None:
    place.context.settings.workflow_runs_kept = 3
    await place.report(told("waits"))
    for number in range(5):
        await place.report(told(f"r{number}", "completed", number))
    assert set(await place.runs()) == {"waits", "r3", "r4"}


@pytest.mark.parametrize(
    "change",
    [
        {"status": "lost"}, {"run_id": ""}, {"handler_id": "x" * 501}, {"error": "x" * 1001}, {"started_at": "yesterday"},
        {"updated_at": None}, {"started_at": "2026-01-02T03:04:05"}, {"result": {"secret": 1}}, {"workflow": "a\u0000"},
        {"started_key_id": "me"},
    ],
)  # fmt: skip
async def test_reports_that_are_refused_change_nothing(place: Place, change: dict[str, Any]) -> None:
    answer = await place.send(changes=[told("a"), {**told("b"), **change}], position="p")
    assert answer.status_code in (400, 422), answer.text
    assert await place.runs() == {}
    assert (await place.send()).json()["position"] is None


async def test_no_more_than_fits_one_report(place: Place) -> None:
    assert (await place.send(changes=[told(str(one)) for one in range(501)])).status_code == 422
    await place.report(*[told(str(one)) for one in range(500)])
    assert (await place.get("/workflow-runs", limit=1))["total"] == 500

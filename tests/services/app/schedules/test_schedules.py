"""Schedules as people set them, and what fires."""

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from services.app.schedules import service
from services.app.schedules.firing import Schedules, forget
from services.app.schedules.service import SCHEDULES
from shared.clock import now
from tests.services.app.flows.conftest import Flows, Json, template

HOURLY = {"cron": "0 * * * *", "timezone": "Europe/Berlin", "input": {"who": "you"}}


class Bench:
    def __init__(self, flows: Flows, workflow: str) -> None:
        self.flows, self.path = flows, f"/workflows/{workflow}/schedules"
        self.workflow = workflow

    async def create(self, **more: Any) -> Json:
        answer = await self.flows.ask("POST", self.path, body={**HOURLY, **more})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def due(self, ago: str = "1 second") -> None:
        await self.flows.run(f"UPDATE flow.schedule SET next_at = now() - interval '{ago}'")

    async def fire(self) -> int:
        """Everything that is due, as the loop does."""
        schedules, count = Schedules(self.flows.context), 0
        while await schedules.fire_one():
            count += 1
        return count

    async def last(self, schedule: Json) -> Json:
        shown = await self.flows.get(f"{self.path}/{schedule['id']}")
        return dict(shown["last"])

    async def executions(self) -> list[Json]:
        return list((await self.flows.get(f"/workflows/{self.workflow}/executions"))["executions"])


@pytest.fixture
async def bench(flows: Flows) -> Bench:
    return Bench(flows, await flows.create(template()))


async def test_a_schedule_is_made_changed_and_deleted(bench: Bench) -> None:
    made = await bench.create(cron=" 0  9 * *  MON ")
    assert (made["cron"], made["misfire"], made["last"]) == ("0 9 * * MON", "run_once", None)
    assert made["next_at"] > made["created_at"]
    path = f"{bench.path}/{made['id']}"
    assert await bench.flows.get(path) == made
    assert [one["id"] for one in (await bench.flows.get(bench.path))["data"]] == [made["id"]]
    off = (await bench.flows.ask("PUT", path, body={**HOURLY, "enabled": False})).json()
    assert (off["enabled"], off["next_at"], off["revision"]) == (False, None, 2)
    stale = await bench.flows.ask("PUT", path, body=HOURLY, headers={"If-Match": '"1"'})
    assert stale.status_code == 412
    assert (await bench.flows.ask("DELETE", path)).status_code == 204
    assert (await bench.flows.ask("GET", path)).status_code == 404


@pytest.mark.parametrize(
    ("wrong", "param", "status"),
    [
        ({"cron": "0 0 31 2 *"}, "cron", 422), ({"timezone": "../etc/passwd"}, "timezone", 422),
        ({"timezone": "Mars/Base"}, "timezone", 422), ({"misfire": "all"}, "misfire", 422),
        ({"input": {"nobody": 1}}, "input.nobody", 400), ({"extra": 1}, "extra", 422),
    ],
)  # fmt: skip
async def test_what_is_refused(bench: Bench, wrong: Json, param: str, status: int) -> None:
    answer = await bench.flows.ask("POST", bench.path, body={**HOURLY, **wrong})
    assert answer.status_code == status, answer.text
    assert param in [one["param"] for one in answer.json()["errors"]]


async def test_a_flow_has_so_many(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST", 1)
    await bench.create()
    assert (await bench.flows.ask("POST", bench.path, body=HOURLY)).json()["code"] == "quota_exceeded"


async def test_a_time_that_has_come_starts_one_execution(bench: Bench) -> None:
    made = await bench.create()
    assert await bench.fire() == 0
    await bench.due()
    assert await bench.fire() == 1
    [execution] = await bench.executions()
    last = await bench.last(made)
    assert (last["execution_id"], last["reason"]) == (execution["execution_id"], None)
    shown = await bench.flows.get(f"{bench.path}/{made['id']}")
    assert shown["next_at"] >= made["next_at"]
    whole = await bench.flows.get(f"/workflows/{bench.workflow}/executions/{execution['execution_id']}")
    assert whole["input"] == {"who": "you"}


async def test_of_several_processes_one_fires(bench: Bench) -> None:
    for _ in range(5):
        await bench.create()
    await bench.due()
    fired = await asyncio.gather(*(bench.fire() for _ in range(4)))
    assert sum(fired) == 5
    assert len(await bench.executions()) == 5


async def test_a_time_comes_once_whatever_happens(bench: Bench) -> None:
    await bench.create()
    await bench.due("20 seconds")
    at = await bench.flows.value("SELECT next_at FROM flow.schedule")
    await bench.fire()
    await bench.flows.run("UPDATE flow.schedule SET next_at = :at", at=at)
    assert await bench.fire() == 1
    assert len(await bench.executions()) == 1
    assert await bench.flows.value("SELECT next_at > now() FROM flow.schedule")


async def test_a_start_that_is_rolled_back_is_made_up_for(bench: Bench) -> None:
    """A process that dies in the middle has fired nothing."""
    await bench.create()
    await bench.due()

    async def killed(*_arguments: object) -> str:
        raise asyncio.CancelledError

    with contextlib.suppress(asyncio.CancelledError):
        await Schedules(bench.flows.context, killed).fire_one()
    assert await bench.flows.value("SELECT count(*) FROM flow.firing") == 0
    assert await bench.fire() == 1
    assert len(await bench.executions()) == 1


async def test_times_that_were_missed(bench: Bench) -> None:
    """One run for all of them, or none."""
    once, skips = await bench.create(), await bench.create(misfire="skip")
    await bench.due("5 hours")
    assert await bench.fire() == 2
    [execution] = await bench.executions()
    assert (await bench.last(once))["execution_id"] == execution["execution_id"]
    skipped = await bench.last(skips)
    assert (skipped["execution_id"], skipped["reason"]) == (None, "The time was missed, and missed times are skipped.")
    assert await bench.flows.value("SELECT bool_and(next_at > now()) FROM flow.schedule")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ('UPDATE platform."user" SET disabled_at = now()', "has been disabled"),
        ("DELETE FROM platform.member", "may not work in the project"),
        ("UPDATE platform.member SET role = 'viewer'", "may not work in the project"),
        ("""UPDATE platform."user" SET role = 'viewer'""", "may not work in the project"),
        ("UPDATE flow.flow SET deleted_at = now()", "was deleted"),
        ("""UPDATE flow.schedule SET inputs = '{"nobody": 1}'""", "input.nobody: "),
    ],
)  # fmt: skip
async def test_what_may_not_start_says_why(bench: Bench, statement: str, reason: str) -> None:
    await bench.create()
    await bench.due()
    await bench.flows.run(statement)
    assert await bench.fire() == 1
    assert await bench.flows.value("SELECT count(*) FROM flow.execution") == 0
    last = await bench.flows.value("SELECT last FROM flow.schedule")
    assert last["execution_id"] is None
    assert reason in last["reason"]
    assert await bench.flows.value("SELECT next_at > now() FROM flow.schedule")


async def test_a_fault_of_ours_keeps_no_other_schedule_from_firing(bench: Bench) -> None:
    await bench.create()
    await bench.create()
    await bench.due()

    async def broken(*_arguments: object) -> str:
        raise KeyError("secret")

    schedules = Schedules(bench.flows.context, broken)
    assert [await schedules.fire_one() for _ in range(3)] == [True, True, False]
    found = await bench.flows.value("SELECT last FROM flow.schedule LIMIT 1")
    assert found["reason"] == "The execution could not be started (KeyError)."


async def test_the_loop_hears_of_changes(bench: Bench) -> None:
    await bench.create()
    task = asyncio.create_task(Schedules(bench.flows.context).run())
    try:
        await bench.due()
        async with asyncio.timeout(30):
            while not await bench.executions():
                bench.flows.context.hub.wake(SCHEDULES)
                await asyncio.sleep(0.05)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_old_firings_are_forgotten(bench: Bench) -> None:
    await bench.create()
    await bench.due()
    await bench.fire()
    await forget(bench.flows.context)
    assert await bench.flows.value("SELECT count(*) FROM flow.firing") == 1
    days = bench.flows.context.settings.job_retention_days + 1
    await bench.flows.run("UPDATE flow.firing SET created_at = :at", at=now() - timedelta(days=days))
    await forget(bench.flows.context)
    assert await bench.flows.value("SELECT count(*) FROM flow.firing") == 0


async def test_a_schedule_belongs_to_its_flow(bench: Bench) -> None:
    made = await bench.create()
    other = await bench.flows.create(template("other"))
    assert (await bench.flows.ask("GET", f"/workflows/{other}/schedules/{made['id']}")).status_code == 404
    async with bench.flows.context.database.transaction() as session:
        await session.execute(text("DELETE FROM flow.version"))
        await session.execute(text("DELETE FROM flow.flow"))
    assert await bench.flows.value("SELECT count(*) FROM flow.schedule") == 0

"""A fault in what a job's end means for our rows never keeps the job from ending."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.jobs.outcome import Outcome
from shared.jobs import views
from shared.jobs.declare import job, step
from shared.jobs.ledger import JobRequest, JobView
from shared.jobs.run import Run, Step

Seen = list[tuple[str, str]]
Broken = Callable[[JobView], Exception | None]


@step("Work")
async def work(ctx: Step, argument: int) -> int:
    return argument


@job("outcome_test", steps=[work])
async def outcome_test(run: Run, argument: int) -> int:
    return int(await run.step(work, argument))


class Recorder:
    """A hook that writes to the database, then raises when it is told to."""

    def __init__(self, name: str, seen: Seen, broken: Broken) -> None:
        self._name, self._seen, self._broken = name, seen, broken

    async def __call__(self, session: AsyncSession, job: JobView, spec: dict[str, Any]) -> None:
        self._seen.append((self._name, job["state"]))
        await session.execute(
            text("INSERT INTO jobs.signal (job_id, name, data) VALUES (:id, :name, 'null')"),
            {"id": UUID(job["id"]), "name": f"{self._name} {job['state']}"},
        )
        if error := self._broken(job):
            raise error


async def begun(context: AppContext, resource: Broken, workflow: Broken) -> tuple[UUID, Seen]:
    """A job whose step has succeeded, with hooks that break as they are told."""
    seen: Seen = []
    hooks = Recorder("resource", seen, resource), Recorder("workflow", seen, workflow)
    context.ledger.hooks = {"outcome_test": Outcome(context.ledger, *hooks)}
    request = JobRequest(outcome_test, 7)
    async with context.database.transaction() as session:
        await context.ledger.submit(session, request)
        await session.execute(
            text("UPDATE jobs.step SET state = 'succeeded', result = '7' WHERE job_id = :id"), {"id": request.id}
        )
    async with context.database.transaction() as session:
        await context.ledger.transition(session, request.id, "running")
    seen.clear()
    return request.id, seen


async def end(context: AppContext, job_id: UUID, state: str) -> JobView:
    async with context.database.transaction() as session:
        await context.ledger.transition(session, job_id, state)
    async with context.database.transaction() as session:
        shown = await views.load_one(session, job_id)
    assert shown is not None
    return shown


async def written(context: AppContext, job_id: UUID) -> set[str]:
    async with context.database.transaction() as session:
        rows = await session.execute(text("SELECT name FROM jobs.signal WHERE job_id = :id"), {"id": job_id})
        return set(rows.scalars())


def fine(_job: JobView) -> None:
    return None


def breaks_on(*states: str) -> Broken:
    return lambda job: KeyError("ours") if job["state"] in states else None


async def test_the_resource_comes_before_the_workflow_at_the_end(app_context: AppContext) -> None:
    job_id, seen = await begun(app_context, fine, fine)
    assert (await end(app_context, job_id, "succeeded"))["state"] == "succeeded"
    assert seen == [("resource", "succeeded"), ("workflow", "succeeded")]


@pytest.mark.parametrize("who", ["resource", "workflow"])
async def test_a_success_that_cannot_be_recorded_is_a_failure_that_says_so(app_context: AppContext, who: str) -> None:
    broken = breaks_on("succeeded")
    job_id, seen = await begun(
        app_context, broken if who == "resource" else fine, broken if who == "workflow" else fine
    )
    shown = await end(app_context, job_id, "succeeded")
    assert (shown["state"], shown["error"]["code"], shown["result"]) == ("failed", "internal", None)
    assert "KeyError" in shown["error"]["message"]
    assert seen[-2:] == [("resource", "failed"), ("workflow", "failed")]
    assert f"{who} succeeded" not in await written(app_context, job_id)
    assert {"resource failed", "workflow failed"} <= await written(app_context, job_id)
    async with app_context.database.transaction() as session:
        retried = await app_context.ledger.retry(session, job_id)
    assert retried["steps"][0]["state"] == "pending"  # its last step makes the result anew


@pytest.mark.parametrize("state", ["failed", "cancelled", "cleanup_required"])
async def test_another_end_stands_without_what_could_not_be_recorded(app_context: AppContext, state: str) -> None:
    job_id, seen = await begun(app_context, breaks_on(state), fine)
    assert (await end(app_context, job_id, state))["state"] == state
    assert seen == [("resource", state), ("workflow", state)]
    assert await written(app_context, job_id) >= {f"workflow {state}"}
    assert f"resource {state}" not in await written(app_context, job_id)


async def test_both_hooks_may_break_at_every_end(app_context: AppContext) -> None:
    every = breaks_on("succeeded", "failed")
    job_id, _ = await begun(app_context, every, every)
    assert (await end(app_context, job_id, "succeeded"))["state"] == "failed"


async def test_a_database_that_is_away_is_the_engines_to_wait_for(app_context: AppContext) -> None:
    away = OperationalError("", {}, Exception("gone"))
    job_id, _ = await begun(app_context, lambda job: away if job["state"] == "succeeded" else None, fine)
    with pytest.raises(OperationalError):
        await end(app_context, job_id, "succeeded")


async def test_a_fault_at_a_persons_request_refuses_it(app_context: AppContext) -> None:
    seen: Seen = []
    broken = Recorder("resource", seen, breaks_on("pending"))
    app_context.ledger.hooks = {"outcome_test": Outcome(app_context.ledger, broken, Recorder("workflow", seen, fine))}
    request = JobRequest(outcome_test, 7, id=uuid4())
    with pytest.raises(KeyError):
        await _submit(app_context, request)
    async with app_context.database.transaction() as session:
        assert await views.load_one(session, request.id) is None


def _submit(context: AppContext, request: JobRequest) -> Awaitable[None]:
    async def run() -> None:
        async with context.database.transaction() as session:
            await context.ledger.submit(session, request)

    return run()


async def test_claims_do_not_ask_the_hooks(app_context: AppContext) -> None:
    job_id, seen = await begun(app_context, breaks_on("running", "waiting"), breaks_on("running", "waiting"))
    for state in ("running", "waiting"):
        assert (await end(app_context, job_id, state))["state"] == state
    assert seen == []

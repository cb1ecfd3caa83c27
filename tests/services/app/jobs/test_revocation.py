"""Queued jobs do not outlive the key, the user or the membership that asked for them."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import text

from services.app.context import AppContext
from services.app.jobs.revocation import cancel_revoked
from services.app.maintenance import REVOKE_EVERY
from shared.db import migrate
from shared.jobs.declare import job, step
from shared.jobs.ledger import REVOKED, JobRequest
from shared.jobs.run import Run
from tests.services.app.conftest import People, Person


class Nothing(BaseModel):
    pass


@step("Work")
async def work(_ctx: Any, _spec: Nothing) -> Nothing:
    return Nothing()


@job("nothing", steps=[work])
async def nothing(run: Run, spec: Nothing) -> Nothing:
    await run.step(work, spec)
    return Nothing()


async def queued(context: AppContext, person: Person, project: UUID | None = None, **values: Any) -> UUID:
    request = JobRequest(nothing, Nothing(), project_id=project, owner_id=person.id, key_id=person.key_id, **values)
    async with context.database.transaction() as session:
        await context.ledger.submit(session, request)
    return request.id


async def shown(context: AppContext, job_id: UUID) -> tuple[str, str | None]:
    async with context.database.statement() as connection:
        row = await connection.execute(
            text("SELECT state, error->>'code' AS code FROM jobs.job WHERE id = :id"), {"id": job_id}
        )
        found = row.one()
    return found.state, found.code


async def run(context: AppContext, statement: str, **values: Any) -> None:
    async with context.database.transaction() as session:
        await session.execute(text(statement), values)


REVOKE = "UPDATE platform.api_key SET revoked_at = now() WHERE id = :key"
LOST = {
    "revoked": REVOKE,
    "deleted": 'DELETE FROM platform."user" WHERE id = :user',
    "disabled": 'UPDATE platform."user" SET disabled_at = now() WHERE id = :user',
    "a viewer now": """UPDATE platform."user" SET role = 'viewer' WHERE id = :user""",
    "no member": "DELETE FROM platform.member WHERE user_id = :user",
    "only reads": "UPDATE platform.member SET role = 'viewer' WHERE user_id = :user",
}


@pytest.mark.parametrize("lost", LOST)
async def test_a_job_is_cancelled_when_its_asker_loses(app_context: AppContext, people: People, lost: str) -> None:
    project = await people.project("p")
    person = await people.add("member", projects={project: "member"})
    other = await people.add("member", projects={project: "member"})
    theirs, others = await queued(app_context, person, project), await queued(app_context, other, project)
    assert await cancel_revoked(app_context) == 0

    statement = LOST[lost]
    await run(app_context, statement, **{"key": person.key_id} if ":key" in statement else {"user": person.id})
    assert await cancel_revoked(app_context) == 1
    assert await shown(app_context, theirs) == ("cancelled", REVOKED)
    assert await shown(app_context, others) == ("pending", None)
    assert await cancel_revoked(app_context) == 0


async def test_whose_key_is_good_keeps_their_jobs(app_context: AppContext, people: People) -> None:
    """Operators need no membership; an expired key keeps what it queued; a job without a key is the platform's own."""
    project = await people.project("p")
    operator = await people.add("operator")
    kept = [
        await queued(app_context, operator, project),
        await queued(app_context, operator, resource_type="cluster", resource_id=uuid4()),
    ]
    await run(app_context, "UPDATE platform.api_key SET expires_at = now() - interval '1 hour'")
    await run(app_context, "UPDATE jobs.job SET key_id = NULL WHERE id = :id", id=kept[0])
    await run(app_context, "DELETE FROM platform.member")
    assert await cancel_revoked(app_context) == 0

    await run(app_context, """UPDATE platform."user" SET role = 'member'""")
    assert await cancel_revoked(app_context) == 1
    assert (await shown(app_context, kept[1]))[0] == "cancelled"
    assert (await shown(app_context, kept[0]))[0] == "pending"


async def test_what_waits_is_undone_and_what_runs_goes_on(app_context: AppContext, people: People) -> None:
    person = await people.add("member")
    waiting, running, given_up = [await queued(app_context, person) for _ in range(3)]
    await run(app_context, "UPDATE jobs.job SET state = 'waiting' WHERE id = :id", id=waiting)
    await run(app_context, "UPDATE jobs.job SET state = 'running', worker = :w WHERE id = :id", id=running, w=uuid4())
    await run(app_context, "UPDATE jobs.job SET state = 'running' WHERE id = :id", id=given_up)
    await run(app_context, REVOKE, key=person.key_id)
    assert await cancel_revoked(app_context) == 2
    assert await shown(app_context, waiting) == ("cancelling", REVOKED)
    assert await shown(app_context, running) == ("running", None)
    assert await shown(app_context, given_up) == ("cancelling", REVOKED)


async def test_a_retry_is_of_whoever_asked_for_it(app_context: AppContext, people: People) -> None:
    gone, operator = await people.add("member"), await people.add("operator")
    job_id = await queued(app_context, gone)
    await run(app_context, "UPDATE jobs.job SET state = 'failed' WHERE id = :id", id=job_id)
    await run(app_context, REVOKE, key=gone.key_id)
    async with app_context.database.transaction() as session:
        await app_context.ledger.retry(session, job_id, key_id=operator.key_id)
    assert await cancel_revoked(app_context) == 0
    await run(app_context, REVOKE, key=operator.key_id)
    assert await cancel_revoked(app_context) == 1


def test_the_duty_comes_in_time_and_the_column_is_migrated(database_url: str) -> None:
    assert REVOKE_EVERY <= 30  # a minute, less what finding a new holder of the lease takes
    migrate.check(database_url)

"""Cancels queued jobs whose key was revoked, or whose user may not work in their project any more.

Queued is what no process works on: pending, waiting, or given up by a process that ended. The maintenance
(`services.app.maintenance`) asks for it every few seconds. A key that has merely expired keeps what it queued: its
end was known when it asked.
"""

from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.context import AppContext
from shared.errors import Problem

BATCH = 200

# A deleted user's keys are gone with them. Whoever works in every project needs no membership.
_REVOKED = """
    SELECT * FROM (
        SELECT j.id, j.kind, j.project_id, CASE
                 WHEN k.id IS NULL OR k.revoked_at IS NOT NULL THEN 'The key that asked for this job has been revoked.'
                 WHEN u.disabled_at IS NOT NULL THEN 'The user who asked for this job has been disabled.'
                 WHEN u.role = 'viewer' OR (j.resource_type = 'cluster' AND u.role = 'member')
                      THEN 'The user who asked for this job has lost the role that it needs.'
                 WHEN j.project_id IS NOT NULL AND u.role = 'member' AND coalesce(m.role, 'viewer') = 'viewer'
                      THEN 'The user who asked for this job may not work in its project any more.'
               END AS reason
          FROM jobs.job j
          LEFT JOIN platform.api_key k ON k.id = j.key_id
          LEFT JOIN platform."user" u ON u.id = k.user_id
          LEFT JOIN platform.member m ON m.project_id = j.project_id AND m.user_id = u.id
         WHERE j.key_id IS NOT NULL AND j.phase = 'forward' AND {which}
           AND (j.state IN ('pending', 'waiting') OR (j.state = 'running' AND j.worker IS NULL))) AS queued
     WHERE reason IS NOT NULL ORDER BY id LIMIT :batch"""
_ALL = text(_REVOKED.format(which="true"))
_ONE = text(_REVOKED.format(which="j.id = :id"))

log = structlog.get_logger(__name__)


async def cancel_revoked(context: AppContext) -> int:
    """Cancel them, each in a transaction of its own; returns how many."""
    async with context.database.statement() as connection:
        found = [row.id for row in await connection.execute(_ALL, {"batch": BATCH})]
    return sum([await _cancel(context, job_id) for job_id in found])


async def _cancel(context: AppContext, job_id: UUID) -> bool:
    try:
        async with context.database.transaction() as session:
            return await _cancel_locked(context, session, job_id)
    except Problem as problem:  # it has ended, or its outcome refuses: the others must not wait for it
        log.warning("revoked_job_stays", job=str(job_id), code=problem.code)
        return False


async def _cancel_locked(context: AppContext, session: AsyncSession, job_id: UUID) -> bool:
    """Look again under the job's lock: it may have been claimed, or given back its rights, just now."""
    await session.execute(text("SELECT 1 FROM jobs.job WHERE id = :id FOR UPDATE"), {"id": job_id})
    row = (await session.execute(_ONE, {"id": job_id, "batch": 1})).one_or_none()
    if row is None:
        return False
    await context.ledger.cancel(session, job_id, revoked=row.reason)
    await audit.record(
        session, None, "job.revoke", "job", job_id, project_id=row.project_id, kind=row.kind, reason=row.reason
    )
    return True

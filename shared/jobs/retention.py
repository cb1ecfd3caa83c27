"""Forgets what is old: ended jobs with their steps and events, and the events of topics that have nothing left."""

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.db.engine import Database

_JOBS = text("""
    DELETE FROM jobs.job WHERE id IN (
        SELECT id FROM jobs.job WHERE ended_at < clock_timestamp() - make_interval(days => :days)
           AND state IN ('succeeded', 'failed', 'cancelled') LIMIT 1000)
    RETURNING id""")

_EVENTS = text("""
    DELETE FROM jobs.event WHERE id IN (
        SELECT e.id FROM jobs.event e
         WHERE e.job_id IS NULL AND e.created_at < clock_timestamp() - make_interval(days => :days)
           AND NOT EXISTS (SELECT 1 FROM jobs.job j WHERE j.topic = e.topic) LIMIT 5000)
    RETURNING id""")


_JOB = text("""
    DELETE FROM jobs.job WHERE id = :id AND state IN ('succeeded', 'failed', 'cancelled') RETURNING id""")


async def forget(session: AsyncSession, job_id: UUID) -> bool:
    """Delete one ended job, with its steps and events; whether there was one."""
    return (await session.execute(_JOB, {"id": job_id})).one_or_none() is not None


async def purge(database: Database, days: int) -> int:
    """Delete ended jobs older than so many days; what still needs someone's hand (`cleanup_required`) stays."""
    gone = 0
    for statement in (_JOBS, _EVENTS):
        while True:
            async with database.statement() as connection:
                count = len((await connection.execute(statement, {"days": days})).all())
            gone += count
            if count == 0:
                break
    return gone

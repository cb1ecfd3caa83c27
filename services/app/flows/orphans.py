"""Ends the sub-flows whose parent has ended: by a failure, a cancel, a crash on the way, or a deletion.

An execution that fails stops its sub-flows itself, and one that is cancelled undoes them (`services.flow.jobs`). What is left
all the same is found here by what the tables say, so nothing is lost with a process. It is not done in the transaction of
the parent's end: that holds the parent's job, and the end of a child takes its own job first, then the parent's.
"""

from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext

ORPHANS = "orphans"  # the hub's name for "an execution has failed, or was cancelled"
BATCH = 200

_ENDED = "('succeeded', 'failed', 'cancelled', 'cleanup_required')"
_FOUND = text(f"""
    SELECT e.id FROM flow.execution e JOIN jobs.job j ON j.id = e.id JOIN jobs.job p ON p.id = e.parent
     WHERE e.status IN ('PENDING', 'RUNNING') AND j.state IN ('pending', 'running', 'waiting') AND p.state IN {_ENDED}
     ORDER BY e.id LIMIT :batch""")
_CHILDREN = text(
    "SELECT id FROM flow.execution WHERE parent = :parent AND status IN ('PENDING', 'RUNNING') ORDER BY id"
)

# After the lock of the child's job: whoever runs the parent again takes that lock too, and is seen here.
_LOCK = text("SELECT state FROM jobs.job WHERE id = :id FOR UPDATE")
_STILL = text(f"""
    SELECT 1 FROM flow.execution e JOIN jobs.job p ON p.id = e.parent WHERE e.id = :id AND p.state IN {_ENDED}""")

log = structlog.get_logger(__name__)


async def cancel_all(context: AppContext) -> int:
    """Cancel all that there are, each in a transaction of its own; how many."""
    count = 0
    while True:
        async with context.database.statement() as connection:
            found = [row.id for row in await connection.execute(_FOUND, {"batch": BATCH})]
        cancelled = 0
        for child in found:
            async with context.database.transaction() as session:
                cancelled += await _cancel(context, session, child)
        count += cancelled
        if cancelled < BATCH:
            return count


async def cancel_of(context: AppContext, session: AsyncSession, parent: UUID) -> None:
    """Cancel those of one parent, before it is forgotten; nothing while it has not ended."""
    for child in (await session.execute(_CHILDREN, {"parent": parent})).scalars().all():
        await _cancel(context, session, child)


async def _cancel(context: AppContext, session: AsyncSession, child: UUID) -> bool:
    state = await session.scalar(_LOCK, {"id": child})
    if state not in ("pending", "running", "waiting"):
        return False
    if await session.scalar(_STILL, {"id": child}) is None:
        return False
    await context.ledger.cancel(session, child)
    log.info("orphan_cancelled", execution=str(child))
    return True

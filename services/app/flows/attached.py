"""What people attach to a flow, and what starts it: schedules and triggers. Both are found, bounded and deleted alike."""

from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.flows.tables import FlowRow
from shared.errors import Problem

Row = TypeVar("Row", bound=Any)  # of a table with `id` and `flow_id`


async def found(
    session: AsyncSession, table: type[Row], what: str, flow: FlowRow, row_id: UUID, *, lock: bool = False
) -> Row:
    """Problem `not_found`, also for what is another flow's. `what` is its name in words."""
    row = await session.get(table, row_id, populate_existing=True, with_for_update=lock)
    if row is None or row.flow_id != flow.id:
        raise Problem("not_found", f"The workflow has no such {what}.")
    return row


async def check_room(session: AsyncSession, table: type[Row], what: str, flow: FlowRow, most: int) -> None:
    """Problem `quota_exceeded`. The flow is locked, so simultaneous creations count one after another."""
    count = select(func.count()).where(table.flow_id == flow.id)
    if (await session.execute(count)).scalar_one() >= most:
        raise Problem("quota_exceeded", f"A workflow may have {most} {what}s; delete some first.")

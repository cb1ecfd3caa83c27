"""Fires what is due: a schedule at a time, in one transaction with the execution that it starts.

Several processes share the work: each passes over what another has. That a time has come is a row of its own, so that no
time comes twice, whatever the clocks of processes say; the time that counts is the database's.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.flows import behalf
from services.app.schedules.cron import next_after
from services.app.schedules.service import SCHEDULES
from services.app.schedules.tables import FiringRow, ScheduleRow
from shared.clock import iso
from shared.errors import Problem
from shared.http.sse import first_of

LOOK = 10.0  # seconds between two looks, when nothing wakes the loop
FAULT = 1.0  # seconds after a fault of the database
GRACE = timedelta(seconds=60)  # a time that is longer ago has been missed

_FAULTS = 5  # of a start, that its schedule tells

_SOON = text("SELECT extract(epoch FROM min(next_at) - clock_timestamp()) FROM flow.schedule WHERE next_at IS NOT NULL")
_FORGET = text("DELETE FROM flow.firing WHERE created_at < clock_timestamp() - make_interval(days => :days)")

log = structlog.get_logger(__name__)

Start = Callable[[AsyncSession, ScheduleRow], Awaitable[str]]
"""Starts the schedule's execution in the transaction; its short id. Problems say why it does not start."""


class Schedules:
    """The loop of one process."""

    def __init__(self, context: AppContext, start: Start | None = None) -> None:
        self._context = context
        self._start = start or self._start_flow

    async def run(self) -> None:
        while True:
            changed = self._context.hub.watch(SCHEDULES)  # of what happens from here on nothing is missed
            await first_of(changed, timeout=await self._round())

    async def _round(self) -> float:
        try:
            while await self.fire_one():
                pass
            async with self._context.database.statement() as connection:
                seconds: Any = await connection.scalar(_SOON)
            return LOOK if seconds is None else min(max(float(seconds), 0.01), LOOK)
        except Exception as error:  # most likely the database is away; nobody else would go on with the loop
            log.warning("schedules_stuck", error=type(error).__name__)
            return FAULT

    async def fire_one(self) -> bool:
        """Fire one that is due; False when there is none."""
        async with self._context.database.transaction() as session:
            due = (
                select(ScheduleRow, text("clock_timestamp()"))
                .where(text("next_at <= clock_timestamp()"))
                .order_by(ScheduleRow.next_at).limit(1).with_for_update(of=ScheduleRow, skip_locked=True)
            )  # fmt: skip
            found = (await session.execute(due)).one_or_none()
            if found is None:
                return False
            schedule, moment = found
            await self._fire(session, schedule, moment)
        return True

    async def _fire(self, session: AsyncSession, schedule: ScheduleRow, moment: datetime) -> None:
        at = schedule.next_at
        assert at is not None
        schedule.next_at = next_after(schedule.cron, schedule.timezone, moment)
        is_new = insert(FiringRow).values(schedule_id=schedule.id, at=at).on_conflict_do_nothing()
        if (await session.execute(is_new.returning(FiringRow.at))).one_or_none() is None:
            return
        execution_id, reason = None, "The time was missed, and missed times are skipped."
        if schedule.misfire != "skip" or moment - at <= GRACE:
            execution_id, reason = await self._attempt(session, schedule)
        schedule.last = {"at": iso(at), "execution_id": execution_id, "reason": None if execution_id else reason}

    async def _attempt(self, session: AsyncSession, schedule: ScheduleRow) -> tuple[str | None, str]:
        """The execution, or why there is none. A database that is away is the loop's to wait for."""
        try:
            async with session.begin_nested():
                return await self._start(session, schedule), ""
        except Problem as problem:
            return None, _sentence(problem)
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:  # it must not keep the others from being fired
            log.exception("schedule_not_started", schedule=str(schedule.id))
            return None, f"The execution could not be started ({type(error).__name__})."

    async def _start_flow(self, session: AsyncSession, schedule: ScheduleRow) -> str:
        flow_id: UUID = schedule.flow_id
        return await behalf.start_for(self._context, session, flow_id, schedule.owner_id, schedule.inputs, "schedule")


def _sentence(problem: Problem) -> str:
    """What is wrong, in one line."""
    if not problem.faults:
        return problem.detail
    return "; ".join(f"{fault.param}: {fault.message}" for fault in problem.faults[:_FAULTS])


async def forget(context: AppContext) -> None:
    """Delete what fired long ago."""
    async with context.database.statement() as connection:
        await connection.execute(_FORGET, {"days": context.settings.job_retention_days})

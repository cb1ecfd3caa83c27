"""Schedules of flows for people: made, shown, replaced, deleted."""

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.flows import attached, definitions
from services.app.flows import service as flows
from services.app.flows.tables import FlowRow
from services.app.identity.caller import Caller
from services.app.resources import Revisions, check_revision, listed, save
from services.app.schedules.cron import next_after
from services.app.schedules.schemas import ScheduleIn, schedule_view
from services.app.schedules.tables import ScheduleRow
from shared.clock import now
from shared.flows.definition import Flow
from shared.http.pages import PageQuery

SCHEDULES = "schedules"  # the hub's name for "a schedule has changed"
MOST = 50  # schedules of one flow


async def page(session: AsyncSession, caller: Caller, workflow_id: str, query: PageQuery) -> dict[str, Any]:
    flow = await flows.found(session, caller, workflow_id)
    statement = select(ScheduleRow).where(ScheduleRow.flow_id == flow.id).order_by(ScheduleRow.created_at)
    rows = (await session.execute(statement)).scalars()
    return listed([schedule_view(flow, row) for row in rows], query, "created_at", "next_at")


async def show(session: AsyncSession, caller: Caller, workflow_id: str, schedule_id: UUID) -> dict[str, Any]:
    flow = await flows.found(session, caller, workflow_id)
    return schedule_view(flow, await attached.found(session, ScheduleRow, "schedule", flow, schedule_id))


async def create(
    session: AsyncSession, context: AppContext, caller: Caller, workflow_id: str, body: ScheduleIn
) -> dict[str, Any]:
    flow = await flows.changeable(session, caller, workflow_id, lock=True)
    await attached.check_room(session, ScheduleRow, "schedule", flow, MOST)
    await _check_input(session, caller, flow, body)
    moment = now()
    schedule = ScheduleRow(id=uuid4(), flow_id=flow.id, created_at=moment, revision=0, last=None)
    _set(schedule, caller, body)
    session.add(schedule)
    await save(session)
    await _record(session, caller, "schedule.create", flow, schedule)
    context.hub.publish_after_commit(session, SCHEDULES)
    return schedule_view(flow, schedule)


async def replace(
    session: AsyncSession,
    context: AppContext,
    caller: Caller,
    workflow_id: str,
    schedule_id: UUID,
    body: ScheduleIn,
    expected: Revisions | None,
) -> dict[str, Any]:
    """From now on it runs on behalf of who changes it; times that were missed before are forgotten."""
    flow = await flows.changeable(session, caller, workflow_id)
    schedule = await attached.found(session, ScheduleRow, "schedule", flow, schedule_id, lock=True)
    check_revision(schedule, expected)
    await _check_input(session, caller, flow, body)
    _set(schedule, caller, body)
    await save(session)
    await _record(session, caller, "schedule.change", flow, schedule)
    context.hub.publish_after_commit(session, SCHEDULES)
    return schedule_view(flow, schedule)


async def delete(
    session: AsyncSession, caller: Caller, workflow_id: str, schedule_id: UUID, expected: Revisions | None
) -> None:
    flow = await flows.changeable(session, caller, workflow_id)
    schedule = await attached.found(session, ScheduleRow, "schedule", flow, schedule_id, lock=True)
    check_revision(schedule, expected)
    await session.delete(schedule)
    await session.flush()
    await _record(session, caller, "schedule.delete", flow, schedule)


def _set(schedule: ScheduleRow, caller: Caller, body: ScheduleIn) -> None:
    moment = now()
    schedule.cron, schedule.timezone, schedule.inputs = body.cron, body.timezone, body.input
    schedule.enabled, schedule.misfire, schedule.owner_id = body.enabled, body.misfire, caller.user_id
    schedule.next_at = next_after(body.cron, body.timezone, moment) if body.enabled else None
    schedule.updated_at = moment
    schedule.revision += 1


async def _check_input(session: AsyncSession, caller: Caller, flow: FlowRow, body: ScheduleIn) -> None:
    """As if it were started now: the inputs fit the current version, and the credentials that they name may be used."""
    version, dialect = await flows.version_of(session, flow), flows.spoken(flow)
    definition = Flow.model_validate(version.definition)
    definitions.filled(definition, body.input, dialect)
    named = definitions.credentials_of(definition, body.input, dialect)
    await definitions.check_credentials(session, caller, named, flow.project_id)


async def _record(session: AsyncSession, caller: Caller, action: str, flow: FlowRow, schedule: ScheduleRow) -> None:
    await audit.record(
        session, caller, action, "schedule", schedule.id, project_id=flow.project_id, workflow_id=flow.slug,
        cron=schedule.cron, timezone=schedule.timezone, enabled=schedule.enabled,
    )  # fmt: skip

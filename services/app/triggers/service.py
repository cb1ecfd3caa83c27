"""Triggers of flows for people: made, shown, replaced, deleted. `receiving` takes what comes by them."""

import secrets as random
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.flows import attached
from services.app.flows import service as flows
from services.app.flows.tables import FlowRow
from services.app.identity.caller import Caller
from services.app.resources import Revisions, check_revision, listed, save
from services.app.triggers.schemas import TriggerChange, TriggerIn, trigger_view
from services.app.triggers.tables import TriggerRow
from services.app.webhooks.secrets import new_secret
from shared.clock import now
from shared.http.pages import PageQuery

MOST = 50  # triggers of one flow
_TOKEN_BYTES = 24


def seal_context(trigger_id: UUID) -> str:
    return f"trigger:{trigger_id}"


async def page(session: AsyncSession, caller: Caller, workflow_id: str, query: PageQuery) -> dict[str, Any]:
    flow = await flows.found(session, caller, workflow_id)
    statement = select(TriggerRow).where(TriggerRow.flow_id == flow.id).order_by(TriggerRow.created_at)
    rows = (await session.execute(statement)).scalars()
    return listed([trigger_view(flow, row) for row in rows], query, "created_at")


async def show(session: AsyncSession, caller: Caller, workflow_id: str, trigger_id: UUID) -> dict[str, Any]:
    flow = await flows.found(session, caller, workflow_id)
    return trigger_view(flow, await attached.found(session, TriggerRow, "trigger", flow, trigger_id))


async def create(
    session: AsyncSession, context: AppContext, caller: Caller, workflow_id: str, body: TriggerIn
) -> dict[str, Any]:
    """The view with `secret`, the only time that it is shown."""
    flow = await flows.changeable(session, caller, workflow_id, lock=True)
    await attached.check_room(session, TriggerRow, "trigger", flow, MOST)
    trigger_id, secret, moment = uuid4(), new_secret(), now()
    trigger = TriggerRow(
        id=trigger_id, token=f"tr-{random.token_hex(_TOKEN_BYTES)}", flow_id=flow.id, scheme=body.scheme,
        sealed=context.keyring.seal(secret.encode(), seal_context(trigger_id)), created_at=moment, updated_at=moment,
        revision=1, owner_id=caller.user_id, **body.model_dump(exclude={"scheme"}),
    )  # fmt: skip
    session.add(trigger)
    await save(session)
    await _record(session, caller, "trigger.create", flow, trigger)
    return {**trigger_view(flow, trigger), "secret": secret}


async def replace(
    session: AsyncSession,
    caller: Caller,
    workflow_id: str,
    trigger_id: UUID,
    body: TriggerChange,
    expected: Revisions | None,
) -> dict[str, Any]:
    """From now on it runs on behalf of who changes it."""
    flow = await flows.changeable(session, caller, workflow_id)
    trigger = await attached.found(session, TriggerRow, "trigger", flow, trigger_id, lock=True)
    check_revision(trigger, expected)
    trigger.description, trigger.mapping, trigger.enabled = body.description, body.mapping, body.enabled
    trigger.owner_id, trigger.updated_at = caller.user_id, now()
    trigger.revision += 1
    await save(session)
    await _record(session, caller, "trigger.change", flow, trigger)
    return trigger_view(flow, trigger)


async def delete(
    session: AsyncSession, caller: Caller, workflow_id: str, trigger_id: UUID, expected: Revisions | None
) -> None:
    flow = await flows.changeable(session, caller, workflow_id)
    trigger = await attached.found(session, TriggerRow, "trigger", flow, trigger_id, lock=True)
    check_revision(trigger, expected)
    await session.delete(trigger)
    await session.flush()
    await _record(session, caller, "trigger.delete", flow, trigger)


async def _record(session: AsyncSession, caller: Caller, action: str, flow: FlowRow, trigger: TriggerRow) -> None:
    await audit.record(
        session, caller, action, "trigger", trigger.id, project_id=flow.project_id, workflow_id=flow.slug,
        scheme=trigger.scheme, enabled=trigger.enabled,
    )  # fmt: skip

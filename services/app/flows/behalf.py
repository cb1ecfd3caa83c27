"""Executions that nobody asks for at the moment: of schedules and incoming webhooks, on behalf of who set these up.

They may do what their owner may now: not an owner who was disabled, or who may not work in the project any more.
"""

from typing import Any, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.flows import definitions, repository, service, slugs, starting
from services.app.flows.starting import Start
from services.app.flows.tables import FlowRow
from services.app.identity.caller import Caller
from shared.errors import Problem
from shared.flows.definition import Flow

_NO_KEY = UUID(int=0)

_USER = text("""
    SELECT u.id, u.name, u.role,
           coalesce((SELECT jsonb_object_agg(m.project_id, m.role) FROM platform.member m WHERE m.user_id = u.id), '{}')
               AS projects
      FROM platform."user" u WHERE u.id = :id AND u.disabled_at IS NULL""")


async def start_for(
    context: AppContext,
    session: AsyncSession,
    flow_id: UUID,
    owner_id: UUID,
    inputs: dict[str, Any],
    trigger: Literal["schedule", "webhook"],
) -> str:
    """Start the current version of a flow; the short id of its execution.

    Problems: `not_found` for a flow that was deleted, `forbidden` for an owner who may not start it any more, and those
    of a start.
    """
    flow = await repository.get(session, flow_id)
    if flow is None or flow.deleted_at is not None:
        raise Problem("not_found", "The workflow was deleted.")
    owner = await _owner(session, owner_id, flow)
    version, dialect = await service.version_of(session, flow), service.spoken(flow)
    named = definitions.credentials_of(Flow.model_validate(version.definition), inputs, dialect)
    credentials = await definitions.check_credentials(session, owner, named, flow.project_id)
    asked = Start(flow, version, inputs, dialect, trigger, owner_id, credentials=credentials)
    execution = await starting.start(context, session, asked)
    await audit.record(
        session, None, "execution.start", "execution", execution.id, project_id=flow.project_id, trigger=trigger,
        owner_id=owner_id, version=version.number,
    )  # fmt: skip
    return slugs.spelled(execution.slug, dialect)


async def _owner(session: AsyncSession, owner_id: UUID, flow: FlowRow) -> Caller:
    row = (await session.execute(_USER, {"id": owner_id})).one_or_none()
    if row is None:
        raise Problem("forbidden", "The user on whose behalf it runs has been disabled or deleted.")
    projects = {UUID(project): role for project, role in row.projects.items()}
    owner = Caller(row.id, row.name, row.role, _NO_KEY, frozenset(("read", "write")), projects)
    if not owner.works_in(flow.project_id):
        raise Problem("forbidden", "The user on whose behalf it runs may not work in the project any more.")
    return owner

"""Starts an execution: its row, its job, and what is sealed for it, in the caller's one transaction.

People start them (`executions`), and so do sub-flows (`internal`), schedules and incoming webhooks.
"""

from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.flows import definitions, files, history
from services.app.flows.tables import ExecutionRow, FlowRow, SecretRow, VersionRow
from shared.contracts.flows import RUN_FLOW, FlowRun
from shared.errors import Problem
from shared.flows.definition import Flow
from shared.flows.dialects.words import DialectName
from shared.jobs.ledger import JobRequest
from shared.jobs.run import PlannedStep

RETRY_AFTER = "5"  # seconds


@dataclass(frozen=True, slots=True)
class Parent:
    """The execution, its task, and the attempt of its job, that start another one."""

    id: UUID
    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Start:
    """`definition` is that of the version. `inputs` as they were given, their faults told as `dialect` spells them.
    `credentials` have been checked.

    `owner_id` and `key_id`: who asks; the job may do what they may.
    """

    flow: FlowRow
    version: VersionRow
    definition: Flow
    inputs: dict[str, Any]
    dialect: DialectName
    trigger: Literal["api", "schedule", "webhook", "parent"]
    owner_id: UUID | None
    key_id: UUID | None = None
    credentials: list[UUID] = field(default_factory=list)
    webhook_url: str | None = None
    provider_key: str | None = field(default=None, repr=False)
    parent: Parent | None = None


async def start(context: AppContext, session: AsyncSession, asked: Start) -> ExecutionRow:
    """Problems: `flow_input_invalid`, `too_many_executions`."""
    project = asked.flow.project_id
    filled = definitions.filled(asked.definition, asked.inputs, asked.dialect)
    inputs, uploads = await files.checked(session, asked.definition, filled, project, asked.dialect)
    await check_room(context, session, project)
    parent = asked.parent
    execution = await history.add(session, {
        "id": uuid4(), "flow_id": asked.flow.id, "version": asked.version.number, "project_id": project,
        "inputs": inputs, "webhook_url": asked.webhook_url, "trigger": asked.trigger,
        "parent": parent and parent.id, "parent_task": parent and parent.task, "parent_attempt": parent and parent.attempt,
    })  # fmt: skip
    await files.note_use(session, execution.id, uploads)
    if asked.provider_key is not None:
        await keep_secret(context, session, execution.id, asked.provider_key)
    run = FlowRun(
        flow_id=asked.flow.id, version=asked.version.number, flow=asked.definition, inputs=inputs,
        credentials=asked.credentials, dialect="tasks" if asked.version.dialect == "tasks" else "refs",
    )  # fmt: skip
    await context.ledger.submit(session, JobRequest(
        context.jobs.latest(RUN_FLOW), run, id=execution.id, project_id=project, owner_id=asked.owner_id,
        key_id=asked.key_id, resource_type="flow", resource_id=asked.flow.id,
        steps=[PlannedStep(task.name, task.name) for task in asked.definition.tasks],
    ))  # fmt: skip
    return execution


async def check_room(context: AppContext, session: AsyncSession, project_id: UUID) -> None:
    """Without a lock, for starts must not wait for each other: those of one moment may go beyond the limit together."""
    limit = context.settings.flow_executions_in_flight
    if await history.in_flight(session, project_id, limit) >= limit:
        raise Problem(
            "too_many_executions", f"The project may have {limit} executions in flight, and has them.",
            headers={"Retry-After": RETRY_AFTER},
        )  # fmt: skip


# ---- the provider's key of one execution


def secret_context(execution_id: UUID) -> str:
    return f"flow_secret:{execution_id}"


async def keep_secret(context: AppContext, session: AsyncSession, execution_id: UUID, key: str) -> None:
    """In place of one that was there. It goes with the execution's end."""
    sealed = context.keyring.seal(key.encode(), secret_context(execution_id))
    await session.merge(SecretRow(id=execution_id, sealed=sealed))
    await session.flush()

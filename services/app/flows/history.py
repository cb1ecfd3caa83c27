"""Queries of executions: their rows beside their jobs, their steps, their files."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from pydantic_core import to_json
from sqlalchemy import Select, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.flows import slugs
from services.app.flows.tables import LIVE, ArtifactRow, ExecutionRow, FlowRow
from services.app.identity.caller import Caller
from shared.contracts.flows import ALL_OUTPUTS
from shared.http.pages import Listing, Page, PageQuery, paginate
from shared.jobs.tables import JobRow, StepRow

EXECUTIONS = Listing(
    id=ExecutionRow.id, sortable={"created_at": ExecutionRow.created_at}, default="-created_at",
    search=[ExecutionRow.slug],
)  # fmt: skip


class Listed(NamedTuple):
    """One line of a list."""

    execution: ExecutionRow
    flow: FlowRow
    started_at: datetime | None
    ended_at: datetime | None


class TaskState(NamedTuple):
    """How a task's step stands. `begun` and `failed`: so it has, or a part of it (an item of a loop, a wait)."""

    state: str | None
    done: str | None  # the status of its `TaskDone`
    begun: bool
    failed: bool = False


async def add(session: AsyncSession, values: dict[str, Any]) -> ExecutionRow:
    """A new execution under a short id that nothing else has."""
    while True:
        statement = insert(ExecutionRow).values(slug=slugs.new("ex"), **values)
        statement = statement.on_conflict_do_nothing(index_elements=["slug"])
        made = (await session.execute(statement.returning(ExecutionRow))).scalar_one_or_none()
        if made is not None:
            return made


async def get(session: AsyncSession, name: str | UUID) -> ExecutionRow | None:
    """By its short id (`ex-…`) or its job's."""
    by = ExecutionRow.id if isinstance(name, UUID) else ExecutionRow.slug
    statement = select(ExecutionRow).where(by == name).execution_options(populate_existing=True)
    return (await session.execute(statement)).scalar_one_or_none()


async def child(session: AsyncSession, parent: UUID, task: str, *, lock: bool = False) -> ExecutionRow | None:
    statement = select(ExecutionRow).where(ExecutionRow.parent == parent, ExecutionRow.parent_task == task)
    statement = statement.execution_options(populate_existing=True)
    return (await session.execute(statement.with_for_update() if lock else statement)).scalar_one_or_none()


async def page(session: AsyncSession, caller: Caller, filters: dict[str, Any], query: PageQuery) -> Page[Any]:
    """Pages of what makes a `Listed`. `filters`: flow_id, project_id, status."""
    statement: Select[*tuple[Any, ...]] = (
        select(ExecutionRow, FlowRow, JobRow.started_at, JobRow.ended_at)
        .join(FlowRow, FlowRow.id == ExecutionRow.flow_id)
        .join(JobRow, JobRow.id == ExecutionRow.id)
        .where(caller.visible(ExecutionRow.project_id))
    )
    for name, value in filters.items():
        if value is not None:
            statement = statement.where(getattr(ExecutionRow, name) == value)
    return await paginate(session, statement, EXECUTIONS, query)


async def in_flight(session: AsyncSession, project_id: UUID, limit: int) -> int:
    """How many executions of the project have not ended; counts no further than `limit`."""
    live = select(ExecutionRow.id).where(ExecutionRow.project_id == project_id, ExecutionRow.status.in_(LIVE))
    return (await session.execute(select(func.count()).select_from(live.limit(limit).subquery()))).scalar_one()


# ---- steps

_STATES = text("""
    SELECT substring(key FROM '^[A-Za-z0-9_-]+') AS task, bool_or(state <> 'pending') AS begun,
           bool_or(state = 'failed') AS failed,
           max(state) FILTER (WHERE key ~ '^[A-Za-z0-9_-]+$') AS state,
           max(result ->> 'status') FILTER (WHERE key ~ '^[A-Za-z0-9_-]+$' AND jsonb_typeof(result) = 'object') AS done
      FROM jobs.step WHERE job_id = :job GROUP BY 1""")


async def task_states(session: AsyncSession, job_id: UUID) -> dict[str, TaskState]:
    """By the tasks' names; what has not been planned yet is left out."""
    rows = await session.execute(_STATES, {"job": job_id})
    return {row.task: TaskState(row.state, row.done, row.begun, row.failed) for row in rows if row.task}


async def step(session: AsyncSession, job_id: UUID, key: str) -> StepRow | None:
    return await session.get(StepRow, (job_id, key), populate_existing=True)


_PARTS = text("""
    SELECT min(started_at) AS started_at, max(attempt) AS attempt,
           max(ended_at) FILTER (WHERE state <> 'succeeded') AS ended_at,
           jsonb_path_query_first(jsonb_agg(error ORDER BY ended_at) FILTER (WHERE state = 'failed'), '$[0]') AS error
      FROM jobs.step WHERE job_id = :job AND (starts_with(key, :wait) OR starts_with(key, :item))""")


async def parts(session: AsyncSession, job_id: UUID, task: str) -> Any:
    """Of a task whose own step comes last: when its parts began, the most attempts, how the first that failed ended."""
    return (await session.execute(_PARTS, {"job": job_id, "wait": f"{task}:", "item": f"{task}["})).one()


async def results(session: AsyncSession, job_id: UUID, keys: Collection[str]) -> dict[str, Any]:
    """What the steps of these keys have returned, of those that have."""
    statement = select(StepRow.key, StepRow.result).where(
        StepRow.job_id == job_id, StepRow.key.in_(keys), StepRow.state == "succeeded"
    )
    return {row.key: row.result for row in await session.execute(statement)}


_OUTPUTS = text("""
    SELECT coalesce(step.result, job.result) -> 'outputs' FROM jobs.job job
      LEFT JOIN jobs.step step ON step.job_id = job.id AND step.key = :all AND step.state = 'succeeded'
     WHERE job.id = :job AND job.state = 'succeeded'""")


async def outputs(session: AsyncSession, job_id: UUID) -> dict[str, Any]:
    """What an execution has given, as it is: not to be shown. Nothing before its end."""
    return await session.scalar(_OUTPUTS, {"job": job_id, "all": ALL_OUTPUTS}) or {}


_ITEMS = text("""
    SELECT state, count(*) AS count FROM jobs.step
     WHERE job_id = :job AND starts_with(key, :prefix) AND key ~ '\\[[0-9]+\\]$' GROUP BY state""")


async def items(session: AsyncSession, job_id: UUID, task: str) -> dict[str, int]:
    """How many items of a loop are in each state."""
    rows = await session.execute(_ITEMS, {"job": job_id, "prefix": f"{task}["})
    return {row[0]: row[1] for row in rows}


# ---- files

_NAMESPACE = UUID("5b0d3c9e-7a55-5c1a-9d5e-2f6a1c04b7e2")


async def keep_artifact(session: AsyncSession, values: dict[str, Any]) -> UUID:
    """The same file of the same task has the same id, however often it is told."""
    place = [str(values[name]) for name in ("execution_id", "task", "name", "media_type", "sha256")]
    artifact_id = uuid5(_NAMESPACE, to_json(place).decode())
    await session.execute(insert(ArtifactRow).values(id=artifact_id, **values).on_conflict_do_nothing())
    return artifact_id


async def artifact(session: AsyncSession, artifact_id: UUID, project_id: UUID) -> ArtifactRow | None:
    """A file of any execution of the project, or one that was uploaded into it."""
    return (await artifacts(session, [artifact_id], project_id)).get(artifact_id)


async def artifacts(
    session: AsyncSession, ids: Iterable[UUID], project_id: UUID, *, hold: bool = False
) -> dict[UUID, ArtifactRow]:
    """Those of the project, by their ids. `hold`: none of them is deleted before the transaction has ended."""
    statement = select(ArtifactRow).outerjoin(ExecutionRow, ExecutionRow.id == ArtifactRow.execution_id)
    owner = func.coalesce(ArtifactRow.project_id, ExecutionRow.project_id)
    statement = statement.where(ArtifactRow.id.in_(list(ids)), owner == project_id)
    if hold:
        statement = statement.order_by(ArtifactRow.id).with_for_update(of=ArtifactRow, key_share=True, read=True)
    return {row.id: row for row in (await session.execute(statement)).scalars()}


async def digests(session: AsyncSession, execution_id: UUID) -> list[str]:
    statement = select(ArtifactRow.sha256).where(ArtifactRow.execution_id == execution_id).distinct()
    return list((await session.execute(statement)).scalars())


async def places(session: AsyncSession, ids: Iterable[UUID], project_id: UUID) -> dict[UUID, tuple[str, str] | None]:
    """The short ids of the flow and the execution of each file, of those of the project; None for an upload."""
    statement = (
        select(ArtifactRow.id, FlowRow.slug, ExecutionRow.slug)
        .outerjoin(ExecutionRow, ExecutionRow.id == ArtifactRow.execution_id)
        .outerjoin(FlowRow, FlowRow.id == ExecutionRow.flow_id)
        .where(
            ArtifactRow.id.in_(list(ids)),
            func.coalesce(ArtifactRow.project_id, ExecutionRow.project_id) == project_id,
        )
    )
    return {row[0]: None if row[1] is None else (row[1], row[2]) for row in await session.execute(statement)}

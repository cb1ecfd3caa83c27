"""Queries of workflow servers and their runs."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import Row, Select, delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.identity.caller import Caller
from services.app.workflow_servers.tables import WorkflowRunRow, WorkflowServerRow
from shared.http.pages import Listing, Page, PageQuery, paginate

SERVERS = Listing(
    id=WorkflowServerRow.id,
    sortable={
        "created_at": WorkflowServerRow.created_at,
        "name": WorkflowServerRow.name,
        "seen_at": WorkflowServerRow.seen_at,
    },
    default="-created_at",
    search=[WorkflowServerRow.name, WorkflowServerRow.url],
)
RUNS = Listing(
    id=WorkflowRunRow.id,
    sortable={"started_at": WorkflowRunRow.started_at, "updated_at": WorkflowRunRow.updated_at},
    default="-started_at",
    search=[WorkflowRunRow.handler_id, WorkflowRunRow.workflow],
)

_CHANGED = text("""
    INSERT INTO platform.workflow_run AS r
           (id, project_id, server_id, handler_id, run_id, workflow, status, error, started_at, updated_at, completed_at,
            started_by, started_key_id)
    SELECT gen_random_uuid(), :project, :server, c.handler_id, c.run_id, c.workflow, c.status, c.error, c.started_at,
           c.updated_at, c.completed_at, k.user_id, k.id
      FROM jsonb_to_recordset(CAST(:changes AS jsonb))
           AS c(handler_id text, run_id text, workflow text, status text, error text, started_at timestamptz,
                updated_at timestamptz, completed_at timestamptz, started_key_id uuid)
      LEFT JOIN platform.api_key k ON k.id = c.started_key_id
     ORDER BY c.started_at, c.run_id
        ON CONFLICT (server_id, run_id) DO UPDATE
       SET status = excluded.status, error = excluded.error, updated_at = excluded.updated_at,
           completed_at = excluded.completed_at, confirmed_at = clock_timestamp(),
           started_by = coalesce(r.started_by, excluded.started_by),
           started_key_id = coalesce(r.started_key_id, excluded.started_key_id)
     WHERE r.status IN ('running', 'unknown') OR (excluded.status <> 'running' AND excluded.updated_at >= r.updated_at)
    RETURNING r.id, r.workflow, r.started_by, r.started_key_id, (xmax = 0) AS is_new""")
# What goes on is kept before what has ended, the newest first.
_TRIM = text("""
    DELETE FROM platform.workflow_run WHERE id IN (
        SELECT id FROM platform.workflow_run WHERE server_id = :server
         ORDER BY status = 'running' DESC, created_at DESC, id DESC OFFSET :kept)""")
_FORGET_RUNS = text("""
    DELETE FROM platform.workflow_run
     WHERE created_at < now() - make_interval(days => :days)
       AND (status <> 'running' OR confirmed_at < now() - make_interval(days => :days))""")
_FORGET_SERVERS = text("DELETE FROM platform.workflow_server WHERE seen_at < now() - make_interval(days => :days)")


async def get(session: AsyncSession, server_id: UUID, *, lock: bool = False) -> WorkflowServerRow | None:
    return await session.get(WorkflowServerRow, server_id, populate_existing=True, with_for_update=lock)


async def of_instance(session: AsyncSession, project_id: UUID, name: str, instance: str) -> WorkflowServerRow | None:
    statement = select(WorkflowServerRow).filter_by(project_id=project_id, name=name, instance=instance)
    return (await session.execute(statement.with_for_update())).scalar_one_or_none()


async def count(session: AsyncSession, project_id: UUID) -> int:
    statement = select(func.count()).where(WorkflowServerRow.project_id == project_id)
    return (await session.execute(statement)).scalar_one()


async def longest_gone(session: AsyncSession, project_id: UUID) -> WorkflowServerRow | None:
    """Of those whose runs were in memory and have ended with them, the one that was seen the longest ago."""
    row = WorkflowServerRow
    statement = select(row).where(row.project_id == project_id, row.process.is_not(None), row.state != "online")
    return (await session.execute(statement.order_by(row.seen_at).limit(1))).scalar_one_or_none()


async def page(
    session: AsyncSession,
    caller: Caller,
    project_id: UUID | None,
    state: str | None,
    name: str | None,
    query: PageQuery,
) -> Page[WorkflowServerRow]:
    statement: Select[Any] = select(WorkflowServerRow).where(caller.visible(WorkflowServerRow.project_id))
    for column, value in (
        (WorkflowServerRow.project_id, project_id),
        (WorkflowServerRow.state, state),
        (WorkflowServerRow.name, name),
    ):
        if value is not None:
            statement = statement.where(column == value)
    return await paginate(session, statement, SERVERS, query)


# ---- runs

Found = tuple[WorkflowRunRow, str, str]
"""A run with its server's name and state."""


def _runs() -> Select[WorkflowRunRow, str, str]:
    return select(WorkflowRunRow, WorkflowServerRow.name, WorkflowServerRow.state).join(
        WorkflowServerRow, WorkflowServerRow.id == WorkflowRunRow.server_id
    )


async def run(session: AsyncSession, run_id: UUID, *, lock: bool = False) -> Found | None:
    statement = _runs().where(WorkflowRunRow.id == run_id).execution_options(populate_existing=True)
    if lock:
        statement = statement.with_for_update(of=WorkflowRunRow)
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


class Filters(NamedTuple):
    """`since` and `until` are of the start."""

    project_id: UUID | None = None
    server_id: UUID | None = None
    workflow: str | None = None
    handler_id: str | None = None
    status: str | None = None
    started_by: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None


async def runs(session: AsyncSession, caller: Caller, filters: Filters, query: PageQuery) -> Page[Found]:
    statement: Select[Any, Any, Any] = _runs().where(caller.visible(WorkflowRunRow.project_id))
    for name in ("project_id", "server_id", "workflow", "handler_id", "status", "started_by"):
        if (value := getattr(filters, name)) is not None:
            statement = statement.where(getattr(WorkflowRunRow, name) == value)
    if filters.since is not None:
        statement = statement.where(WorkflowRunRow.started_at >= filters.since)
    if filters.until is not None:
        statement = statement.where(WorkflowRunRow.started_at < filters.until)
    return await paginate(session, statement, RUNS, query)


async def change(
    session: AsyncSession, server: WorkflowServerRow, changes: Sequence[Mapping[str, Any]]
) -> list[Row[UUID, str, UUID | None, UUID | None, bool]]:
    """Write runs as they are told; what has ended does not run again. What was written: (id, workflow, started_by,
    started_key_id, is_new).
    """
    newest = {one["run_id"]: one for one in sorted(changes, key=lambda one: one["updated_at"])}
    values = {"project": server.project_id, "server": server.id, "changes": to_json([*newest.values()]).decode()}
    return list((await session.execute(_CHANGED, values)).all())


async def lose(session: AsyncSession, server_id: UUID, run_ids: Sequence[str] | None = None) -> None:
    """These runs, or all, are not on the server any more, and how they ended is not known."""
    statement = update(WorkflowRunRow).where(WorkflowRunRow.server_id == server_id, WorkflowRunRow.status == "running")
    if run_ids is not None:
        statement = statement.where(WorkflowRunRow.run_id.in_(run_ids))
    values = {"status": "unknown", "confirmed_at": func.clock_timestamp()}
    await session.execute(statement.values(values).execution_options(synchronize_session=False))


async def doubt(session: AsyncSession, server_id: UUID) -> None:
    """Have the server asked for all of its runs that go on."""
    statement = update(WorkflowRunRow).where(WorkflowRunRow.server_id == server_id, WorkflowRunRow.status == "running")
    values = {"confirmed_at": func.clock_timestamp() - text("interval '1 hour'")}
    await session.execute(statement.values(values).execution_options(synchronize_session=False))


async def take(session: AsyncSession, server_id: UUID, run_ids: Sequence[UUID]) -> None:
    statement = update(WorkflowRunRow).where(WorkflowRunRow.server_id == server_id, WorkflowRunRow.id.in_(run_ids))
    taken = statement.where(WorkflowRunRow.cancel_asked_at.is_not(None)).values(cancel_taken_at=func.clock_timestamp())
    await session.execute(taken.execution_options(synchronize_session=False))


async def to_cancel(session: AsyncSession, server_id: UUID, most: int) -> list[WorkflowRunRow]:
    statement = select(WorkflowRunRow).where(
        WorkflowRunRow.server_id == server_id, WorkflowRunRow.status == "running",
        WorkflowRunRow.cancel_asked_at.is_not(None), WorkflowRunRow.cancel_taken_at.is_(None),
    )  # fmt: skip
    return list((await session.execute(statement.order_by(WorkflowRunRow.cancel_asked_at).limit(most))).scalars())


async def unconfirmed(session: AsyncSession, server_id: UUID, seconds: float, most: int) -> list[WorkflowRunRow]:
    """Runs that go on as far as is known, of which nothing was told for so many seconds."""
    old = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    statement = select(WorkflowRunRow).where(
        WorkflowRunRow.server_id == server_id, WorkflowRunRow.status == "running", WorkflowRunRow.confirmed_at < old
    )
    return list((await session.execute(statement.order_by(WorkflowRunRow.confirmed_at).limit(most))).scalars())


async def trim(session: AsyncSession, server_id: UUID, kept: int) -> None:
    await session.execute(_TRIM, {"server": server_id, "kept": kept})


async def forget(session: AsyncSession, server: WorkflowServerRow) -> None:
    await session.execute(delete(WorkflowServerRow).where(WorkflowServerRow.id == server.id))


async def purge(session: AsyncSession, days: int) -> None:
    """Delete what is older than so many days: runs, and servers that have not been seen since."""
    for statement in (_FORGET_RUNS, _FORGET_SERVERS):
        await session.execute(statement, {"days": days})

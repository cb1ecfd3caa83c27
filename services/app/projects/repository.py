"""Queries of projects, their members, and what they hold."""

from uuid import UUID

from sqlalchemy import Select, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.endpoints.tables import EndpointRow
from services.app.flows.tables import ExecutionRow, FlowRow
from services.app.identity.caller import Caller
from services.app.identity.tables import UserRow
from services.app.models.tables import ModelRow
from services.app.projects.tables import MemberRow, ProjectRow
from shared.http.pages import Listing, Page, PageQuery, paginate

PROJECTS = Listing(
    id=ProjectRow.id,
    sortable={"created_at": ProjectRow.created_at, "name": ProjectRow.name, "updated_at": ProjectRow.updated_at},
    default="-created_at",
    search=[ProjectRow.name, ProjectRow.description],
)
MEMBERS = Listing(
    id=MemberRow.user_id,
    sortable={"created_at": MemberRow.created_at, "name": UserRow.name},
    default="created_at",
    search=[UserRow.name, UserRow.display_name],
)

# What counts against each quota; `:project` is the project.
_USED = {
    "models": "SELECT count(*) FROM platform.model WHERE project_id = :project AND state IN ('importing', 'active')",
    "bytes": """SELECT coalesce(sum(size), 0) FROM platform.model
                 WHERE project_id = :project AND state IN ('importing', 'active')""",
    "endpoints": """SELECT count(*) FROM platform.endpoint
                     WHERE project_id = :project AND state NOT IN ('failed', 'deleted')""",
    "workers": """SELECT coalesce(sum(CASE WHEN jsonb_typeof(desired -> 'replicas') = 'number'
                                           THEN (desired ->> 'replicas')::bigint ELSE 0 END), 0)
                    FROM platform.endpoint WHERE project_id = :project AND state NOT IN ('failed', 'deleted')""",
    "jobs_in_flight": """SELECT count(*) FROM jobs.job
                          WHERE project_id = :project AND state IN ('pending', 'running', 'waiting', 'cancelling')
                            AND kind <> 'run_flow'""",  # executions of flows have a limit of their own
}


async def get(session: AsyncSession, project_id: UUID, *, lock: bool = False) -> ProjectRow | None:
    """`lock` makes changes, deletion and quota checks of one project wait for each other; rows that name it do not wait."""
    statement = select(ProjectRow).where(ProjectRow.id == project_id).execution_options(populate_existing=True)
    if lock:
        statement = statement.with_for_update(key_share=True)
    return (await session.execute(statement)).scalar_one_or_none()


async def page(session: AsyncSession, caller: Caller, query: PageQuery) -> Page[ProjectRow]:
    return await paginate(session, select(ProjectRow).where(caller.visible(ProjectRow.id)), PROJECTS, query)


async def used(session: AsyncSession, project_id: UUID, names: list[str]) -> dict[str, int]:
    """How much of each named quota is in use, in one query."""
    columns = ", ".join(f"({_USED[name]}) AS {name}" for name in names)
    row = (await session.execute(text(f"SELECT {columns}"), {"project": project_id})).one()
    return {name: int(value) for name, value in zip(names, row, strict=True)}


# ---- deletion


async def holds(session: AsyncSession, project_id: UUID) -> list[str]:
    """What is in the project and not deleted, in words, such as `2 endpoints`."""
    models = select(func.count()).where(ModelRow.project_id == project_id, ModelRow.state != "deleted")
    endpoints = select(func.count()).where(EndpointRow.project_id == project_id, EndpointRow.state != "deleted")
    flows = select(func.count()).where(FlowRow.project_id == project_id, FlowRow.deleted_at.is_(None))
    counts = {
        "models": (await session.execute(models)).scalar_one(),
        "endpoints": (await session.execute(endpoints)).scalar_one(),
        "flows": (await session.execute(flows)).scalar_one(),
        "jobs in flight": (await used(session, project_id, ["jobs_in_flight"]))["jobs_in_flight"],
    }
    return [f"{count} {what}" for what, count in counts.items() if count]


async def credentials_in_use(session: AsyncSession, project_id: UUID) -> list[str]:
    """The names of the project's credentials that live endpoints elsewhere use."""
    rows = await session.execute(
        text("""SELECT DISTINCT c.name FROM platform.credential c JOIN platform.endpoint e ON e.credential_id = c.id
                 WHERE c.project_id = :project AND e.state NOT IN ('failed', 'deleted') ORDER BY c.name LIMIT 5"""),
        {"project": project_id},
    )
    return list(rows.scalars())


async def remove(session: AsyncSession, project_id: UUID) -> None:
    """Delete the project; of what was deleted in it before, only the models stay, as history of other projects."""
    await session.execute(delete(EndpointRow).where(EndpointRow.project_id == project_id))
    deleted_models = update(ModelRow).where(ModelRow.project_id == project_id).values(project_id=None)
    await session.execute(deleted_models.execution_options(synchronize_session=False))
    await session.execute(delete(ExecutionRow).where(ExecutionRow.project_id == project_id))
    await session.execute(delete(FlowRow).where(FlowRow.project_id == project_id))
    await session.execute(delete(ProjectRow).where(ProjectRow.id == project_id))


# ---- members


async def member(session: AsyncSession, project_id: UUID, user_id: UUID) -> tuple[MemberRow, str, str | None] | None:
    """The membership with the user's name and display name."""
    statement = _members().where(MemberRow.project_id == project_id, MemberRow.user_id == user_id)
    row = (await session.execute(statement.execution_options(populate_existing=True))).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


async def members(session: AsyncSession, project_id: UUID, query: PageQuery) -> Page[tuple[MemberRow, str, str | None]]:
    return await paginate(session, _members().where(MemberRow.project_id == project_id), MEMBERS, query)


def _members() -> Select[MemberRow, str, str | None]:
    return select(MemberRow, UserRow.name, UserRow.display_name).join(UserRow, UserRow.id == MemberRow.user_id)


async def put_member(session: AsyncSession, project_id: UUID, user_id: UUID, role: str) -> bool:
    """Whether the member is new."""
    statement = (
        insert(MemberRow)
        .values(project_id=project_id, user_id=user_id, role=role)
        .on_conflict_do_update(index_elements=["project_id", "user_id"], set_={"role": role})
        .returning(text("xmax = 0"))
    )
    return bool((await session.execute(statement)).scalar_one())


async def remove_member(session: AsyncSession, project_id: UUID, user_id: UUID) -> bool:
    statement = delete(MemberRow).where(MemberRow.project_id == project_id, MemberRow.user_id == user_id)
    return (await session.execute(statement.returning(MemberRow.user_id))).scalar_one_or_none() is not None


async def user_exists(session: AsyncSession, user_id: UUID) -> bool:
    return (await session.execute(select(UserRow.id).where(UserRow.id == user_id))).scalar_one_or_none() is not None

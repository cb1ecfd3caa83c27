"""Flows: made, read, changed into new versions, deleted. Their executions are in `starting` and `executions`."""

from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.flows import definitions, repository, slugs, views
from services.app.flows.tables import FlowRow, VersionRow
from services.app.identity.bootstrap import PROJECT
from services.app.identity.caller import Caller
from services.app.projects import repository as projects
from services.app.resources import Revisions, check_project, check_revision, save
from shared.clock import now
from shared.errors import Fault, Problem
from shared.flows.definition import Flow
from shared.flows.dialects.words import DialectName
from shared.flows.faults import shown
from shared.http.pages import PageQuery

Body = dict[str, Any]


async def page(session: AsyncSession, caller: Caller, project_id: UUID | None, query: PageQuery) -> dict[str, Any]:
    await check_project(session, caller, project_id)
    return (await repository.page(session, caller, project_id, query)).envelope(views.flow_summary)


async def found(
    session: AsyncSession, caller: Caller, workflow_id: str, *, lock: bool = False, deleted: bool = False
) -> FlowRow:
    """The flow that a path names. What the caller may not see is not there; `deleted`: nor is what was deleted, else."""
    name = slugs.flow(workflow_id)
    flow = None if name is None else await repository.get(session, name, lock=lock)
    if flow is None or (flow.deleted_at is not None and not deleted):
        raise Problem("not_found", "There is no such workflow.")
    caller.check_sees(flow.project_id, "workflow")
    return flow


async def changeable(session: AsyncSession, caller: Caller, workflow_id: str, *, lock: bool = False) -> FlowRow:
    flow = await found(session, caller, workflow_id, lock=lock)
    caller.check_works_in(flow.project_id, "workflow")
    return flow


async def version_of(session: AsyncSession, flow: FlowRow, number: int | None = None) -> VersionRow:
    """The current version, or one of before. Problem `not_found`."""
    version = await repository.version(session, flow.id, flow.version if number is None else number)
    if version is None:
        raise Problem("not_found", "The workflow has no such version.")
    return version


async def show(session: AsyncSession, caller: Caller, workflow_id: str, dialect: DialectName | None) -> dict[str, Any]:
    flow = await found(session, caller, workflow_id)
    return views.flow_view(flow, await version_of(session, flow), dialect or spoken(flow))


def spoken(flow: FlowRow) -> DialectName:
    """The dialect in which the flow was created."""
    return "tasks" if flow.dialect == "tasks" else "refs"


async def versions(session: AsyncSession, caller: Caller, workflow_id: str, query: PageQuery) -> dict[str, Any]:
    flow = await found(session, caller, workflow_id)
    rows = await repository.versions(session, flow.id, query)
    return rows.envelope(lambda version: views.version_summary(flow, version))


async def show_version(
    session: AsyncSession, caller: Caller, workflow_id: str, number: int, dialect: DialectName | None
) -> dict[str, Any]:
    flow = await found(session, caller, workflow_id)
    return views.version_view(flow, await version_of(session, flow, number), dialect or spoken(flow))


# ---- changes


def validate(context: AppContext, body: Body) -> DialectName:
    """The dialect of a definition that could be stored. Problem `flow_invalid`, the same as at its creation."""
    rest, _project = _without_project(body)
    return definitions.read(rest, context.task_types)[0]


async def create(
    context: AppContext, session: AsyncSession, caller: Caller, body: Body, project_id: UUID | None
) -> FlowRow:
    caller.require("member")
    rest, named = _without_project(body)
    dialect, flow = definitions.read(rest, context.task_types)
    home = await home_of(session, caller, named or project_id)
    await _lock_project(session, home)
    row, _version = await _make(context, session, caller, home, flow, dialect)
    return row


async def change(
    context: AppContext, session: AsyncSession, caller: Caller, workflow_id: str, body: Body, expected: Revisions | None
) -> dict[str, Any]:
    """A new version, unless the definition is what it is already."""
    row = await changeable(session, caller, workflow_id, lock=True)
    check_revision(row, expected)
    rest = dict(body)
    _check_version(row, rest.pop("expected_version", None))
    dialect, flow = definitions.read(rest, context.task_types)
    version, _is_new = await _change(session, caller, row, flow, dialect)
    return views.flow_view(row, version, dialect)


class Applied(NamedTuple):
    result: Literal["created", "changed", "unchanged"]
    view: dict[str, Any]


async def apply(
    context: AppContext, session: AsyncSession, caller: Caller, body: Body, project_id: UUID | None
) -> Applied:
    """The one flow of this name in the project becomes what the definition says; without one, it is made.

    Under the project's lock, as every creation is: two who apply one definition at a time make one flow.
    """
    caller.require("member")
    rest, named = _without_project(body)
    expected = rest.pop("expected_version", None)
    dialect, flow = definitions.read(rest, context.task_types)
    home = await home_of(session, caller, named or project_id)
    await _lock_project(session, home)
    row = await _only_one(session, home, flow.name)
    if row is None:
        if expected is not None:
            detail = f"There is no workflow of this name yet, so not at version {shown(str(expected))} either."
            raise Problem("version_conflict", detail, param="expected_version")
        row, version = await _make(context, session, caller, home, flow, dialect)
        return Applied("created", views.flow_view(row, version, dialect))
    _check_version(row, expected)
    version, is_new = await _change(session, caller, row, flow, dialect)
    return Applied("changed" if is_new else "unchanged", views.flow_view(row, version, dialect))


async def _only_one(session: AsyncSession, project_id: UUID, name: str) -> FlowRow | None:
    """The project's flow of this name, locked. Problem `conflict` for several: POST may make them, and so may a new name."""
    while True:
        ids = await repository.named(session, project_id, name)
        if len(ids) > 1:
            raise Problem(
                "conflict", f"The project has {len(ids)} workflows called {shown(name)}; change one by its id."
            )
        if not ids:
            return None
        row = await repository.get(session, ids[0], lock=True)
        if row is not None and row.deleted_at is None and row.name == name:
            return row  # else it has just been deleted, or given another name


async def _make(
    context: AppContext, session: AsyncSession, caller: Caller, home: UUID, flow: Flow, dialect: DialectName
) -> tuple[FlowRow, VersionRow]:
    """In a project that is locked."""
    await _check_credentials(session, caller, flow, dialect, home)
    limit = context.settings.flows_per_project
    if await repository.count(session, home) >= limit:
        raise Problem("too_many_flows", f"The project may have {limit} workflows, and has them; delete some.")
    moment = now()
    row = await repository.add(session, {
        "id": uuid4(), "project_id": home, "name": flow.name, "description": flow.description or None,
        "dialect": dialect, "version": 1, "revision": 1, "created_by": caller.user_id, "created_at": moment,
        "updated_at": moment,
    })  # fmt: skip
    version = _add_version(session, caller, row, flow, dialect)
    await save(session)
    await audit.record(session, caller, "flow.create", "flow", row.id, project_id=home, name=row.name, slug=row.slug)
    return row, version


async def _change(
    session: AsyncSession, caller: Caller, row: FlowRow, flow: Flow, dialect: DialectName
) -> tuple[VersionRow, bool]:
    """The current version of a flow that is locked, and whether it is a new one."""
    await _check_credentials(session, caller, flow, dialect, row.project_id)
    current = await version_of(session, row)
    if definitions.stored(flow) == current.definition:
        return current, False
    row.name, row.description = flow.name, flow.description or None
    row.version += 1
    row.revision += 1
    row.updated_at = now()
    version = _add_version(session, caller, row, flow, dialect)
    await save(session)
    await audit.record(
        session, caller, "flow.change", "flow", row.id, project_id=row.project_id, name=row.name, version=row.version
    )
    return version, True


async def delete(session: AsyncSession, caller: Caller, workflow_id: str, expected: Revisions | None) -> None:
    """Its executions stay to be looked at as long as their jobs do."""
    row = await changeable(session, caller, workflow_id, lock=True)
    check_revision(row, expected)
    if live := await repository.in_flight(session, row.id):
        raise Problem("in_use", f"Executions of this workflow have not ended ({live}); cancel them first.")
    row.deleted_at = row.updated_at = now()
    row.revision += 1
    await save(session)
    await audit.record(session, caller, "flow.delete", "flow", row.id, project_id=row.project_id, name=row.name)


def _add_version(session: AsyncSession, caller: Caller, row: FlowRow, flow: Flow, dialect: DialectName) -> VersionRow:
    version = VersionRow(
        flow_id=row.id, number=row.version, definition=definitions.stored(flow), dialect=dialect,
        created_by=caller.user_id, created_at=row.updated_at,
    )  # fmt: skip
    session.add(version)
    return version


def _check_version(row: FlowRow, expected: Any) -> None:
    if expected is None:
        return
    if not isinstance(expected, int) or isinstance(expected, bool):
        raise Problem("flow_invalid", "expected_version must be a whole number.", param="expected_version")
    if expected != row.version:
        raise Problem(
            "version_conflict", f"The workflow is at version {row.version}, not {expected}.", param="expected_version",
            members={"workflow_version": row.version},
        )  # fmt: skip


async def _check_credentials(
    session: AsyncSession, caller: Caller, flow: Flow, dialect: DialectName, project_id: UUID
) -> None:
    named = definitions.credentials_of(flow, {}, dialect)
    await definitions.check_credentials(session, caller, named, project_id)


async def _lock_project(session: AsyncSession, project_id: UUID) -> None:
    """So that two cannot both take the last place, or one name."""
    if await projects.get(session, project_id, lock=True) is None:
        raise Problem("reference_not_found", "There is no such project any more.", param="project_id")


# ---- the project


def _without_project(body: Body) -> tuple[Body, UUID | None]:
    rest = dict(body)
    named = rest.pop("project_id", None)
    if named is None:
        return rest, None
    try:
        return rest, UUID(named)
    except (ValueError, TypeError, AttributeError):
        fault = Fault("project_id", "invalid_format", "project_id must be a UUID.")
        raise Problem("flow_invalid", fault.message, faults=[fault]) from None


async def home_of(session: AsyncSession, caller: Caller, project_id: UUID | None) -> UUID:
    """The project of a new flow or file: the one that is named, the caller's only one, or the one that everyone begins in."""
    home = project_id or caller.only_project
    if home is None and len(caller.projects) == 1:
        home = next(iter(caller.projects))
    if home is None:
        home = await repository.default_project(session, PROJECT)
        if home is None or not caller.works_in(home):
            raise Problem("missing_fields", "Say in which project: send project_id.", param="project_id")
    await check_project(session, caller, home)
    if not caller.works_in(home):
        raise Problem("forbidden", "You may only read in this project.", param="project_id")
    return home

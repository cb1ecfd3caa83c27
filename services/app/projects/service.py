"""Projects and their members: who may change what, and what keeps a project from being deleted."""

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app import icons
from services.app.audit import service as audit
from services.app.identity.caller import Caller
from services.app.projects import repository
from services.app.projects.schemas import MemberIn, ProjectChange, ProjectIn, differences, member_view, project_view
from services.app.projects.tables import MemberRow, ProjectRow
from services.app.resources import Revisions, check_revision, save
from shared.clock import now
from shared.errors import Problem
from shared.http.pages import PageQuery

FOR_ADMINS = frozenset({"policy", "quotas"})


def view(caller: Caller, project: ProjectRow) -> dict[str, Any]:
    return project_view(project, caller.projects.get(project.id))


async def page(session: AsyncSession, caller: Caller, query: PageQuery) -> dict[str, Any]:
    found = await repository.page(session, caller, query)
    return found.envelope(lambda project: view(caller, project))


async def visible(session: AsyncSession, caller: Caller, project_id: UUID, *, lock: bool = False) -> ProjectRow:
    caller.check_sees(project_id, "project")
    project = await repository.get(session, project_id, lock=lock)
    if project is None:
        raise Problem("not_found", "There is no such project.")
    return project


async def create(session: AsyncSession, caller: Caller, body: ProjectIn) -> dict[str, Any]:
    """A project whose creator manages it."""
    caller.require("member")
    if caller.only_project is not None:
        raise Problem("forbidden", "This key is bound to one project; make projects with another.")
    _check(caller, body.model_dump(exclude_none=True))
    moment = now()
    project = ProjectRow(
        id=uuid4(), name=body.name, description=body.description, icon=body.icon, policy=differences(body.policy),
        quotas=differences(body.quotas), created_by=caller.user_id, created_at=moment, updated_at=moment, revision=1,
    )  # fmt: skip
    session.add(project)
    await save(session)
    session.add(MemberRow(project_id=project.id, user_id=caller.user_id, role="manager", created_at=moment))
    await save(session)
    await audit.record(
        session, caller, "project.create", "project", project.id, project_id=project.id, name=project.name
    )
    return project_view(project, "manager")


async def change(
    session: AsyncSession, caller: Caller, project_id: UUID, body: ProjectChange, expected: Revisions | None
) -> dict[str, Any]:
    """Managers change how it is known; policy and quotas are an admin's."""
    project = await visible(session, caller, project_id, lock=True)
    _require_manager(caller, project_id)
    given = body.model_dump(include=body.model_fields_set)
    _check(caller, given)
    check_revision(project, expected)
    values = {**given, **{name: differences(getattr(body, name)) for name in FOR_ADMINS & given.keys()}}
    changed = {name: value for name, value in values.items() if getattr(project, name) != value}
    if changed:
        for name, value in changed.items():
            setattr(project, name, value)
        project.revision += 1
        project.updated_at = now()
        await save(session)
        await audit.record(session, caller, "project.change", "project", project_id, project_id=project_id, **changed)
    return view(caller, project)


async def delete(session: AsyncSession, caller: Caller, project_id: UUID, expected: Revisions | None) -> None:
    """Delete a project with its members, credentials and bound keys; `in_use` while it holds anything else."""
    project = await visible(session, caller, project_id, lock=True)
    _require_manager(caller, project_id)
    check_revision(project, expected)
    if held := await repository.holds(session, project_id):
        raise Problem("in_use", f"The project still has {', '.join(held)}.")
    if names := await repository.credentials_in_use(session, project_id):
        raise Problem("in_use", f"Endpoints of other projects use its credentials: {', '.join(names)}.")
    await audit.record(
        session, caller, "project.delete", "project", project_id, project_id=project_id, name=project.name
    )
    await repository.remove(session, project_id)


def _require_manager(caller: Caller, project_id: UUID) -> None:
    caller.require("member")  # a viewer of the platform changes nothing, whatever a project says
    if not caller.manages(project_id):
        raise Problem("forbidden", "Only the project's managers, and admins, do this.")


def _check(caller: Caller, given: dict[str, Any]) -> None:
    if FOR_ADMINS & given.keys() and caller.role != "admin":
        raise Problem("forbidden", "Only an admin sets a project's policy and quotas.")
    if given.get("icon") and icons.resolve(given["icon"]) is None:
        raise Problem("validation_failed", "The icon is not one of GET /icons.", param="icon")


# ---- members


async def members(session: AsyncSession, caller: Caller, project_id: UUID, query: PageQuery) -> dict[str, Any]:
    await visible(session, caller, project_id)
    found = await repository.members(session, project_id, query)
    return found.envelope(lambda row: member_view(*row))


async def member(session: AsyncSession, caller: Caller, project_id: UUID, user_id: UUID) -> dict[str, Any]:
    await visible(session, caller, project_id)
    found = await repository.member(session, project_id, user_id)
    if found is None:
        raise Problem("not_found", "The project has no such member.")
    return member_view(*found)


async def put_member(
    session: AsyncSession, caller: Caller, project_id: UUID, user_id: UUID, body: MemberIn
) -> tuple[dict[str, Any], bool]:
    """The member, with the role that is asked for, and whether they are new."""
    await visible(session, caller, project_id, lock=True)
    _require_manager(caller, project_id)
    if not await repository.user_exists(session, user_id):
        raise Problem("not_found", "There is no such user.")
    is_new = await repository.put_member(session, project_id, user_id, body.role)
    await audit.record(
        session, caller, "member.put", "user", user_id, project_id=project_id, role=body.role, new=is_new
    )
    return await member(session, caller, project_id, user_id), is_new


async def remove_member(session: AsyncSession, caller: Caller, project_id: UUID, user_id: UUID) -> None:
    """Managers remove anyone, members themselves."""
    await visible(session, caller, project_id, lock=True)
    if user_id != caller.user_id:
        _require_manager(caller, project_id)
    if not await repository.remove_member(session, project_id, user_id):
        raise Problem("not_found", "The project has no such member.")
    await audit.record(session, caller, "member.remove", "user", user_id, project_id=project_id)

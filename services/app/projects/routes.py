"""The routes of projects and their members."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from services.app.context import Context, Session
from services.app.identity.authenticate import Authenticated
from services.app.identity.changes import PeopleSession, people_change
from services.app.identity.idempotency import Once
from services.app.projects import service
from services.app.projects.schemas import MemberIn, ProjectChange, ProjectIn
from services.app.resources import JSON, Expected, answer, created
from shared.http.bodies import StrictRoute, fingerprint_of
from shared.http.pages import PageParams

router = APIRouter(prefix="/projects", tags=["projects"], route_class=StrictRoute)


@router.get("")
async def list_projects(session: Session, caller: Authenticated, query: PageParams) -> dict[str, Any]:
    """Lists the projects that the caller may see."""
    return await service.page(session, caller, query)


@router.post("", status_code=201)
async def create_project(
    body: ProjectIn, request: Request, context: Context, caller: Authenticated, once: Once
) -> Response:
    """Makes a project; whoever makes it manages it."""

    async def work() -> Response:
        async with people_change(request, context) as session:
            return created(await service.create(session, caller, body), "/projects")

    return await once.run(fingerprint_of(request), work)


@router.get("/{project_id}")
async def show_project(project_id: UUID, session: Session, caller: Authenticated) -> Response:
    """Shows a project with the policy and the quotas that hold in it."""
    return answer(service.view(caller, await service.visible(session, caller, project_id)))


@router.patch("/{project_id}")
async def change_project(
    project_id: UUID, body: ProjectChange, session: Session, caller: Authenticated, expected: Expected
) -> Response:
    """Changes name, description and icon; for admins also policy and quotas."""
    return answer(await service.change(session, caller, project_id, body, expected))


@router.delete("/{project_id}", status_code=204)
async def delete_project(project_id: UUID, session: PeopleSession, caller: Authenticated, expected: Expected) -> None:
    """Deletes a project that has neither models nor endpoints."""
    await service.delete(session, caller, project_id, expected)


# ---- members


@router.get("/{project_id}/members")
async def list_members(project_id: UUID, session: Session, caller: Authenticated, query: PageParams) -> dict[str, Any]:
    """Lists who works in the project."""
    return await service.members(session, caller, project_id, query)


@router.get("/{project_id}/members/{user_id}")
async def show_member(project_id: UUID, user_id: UUID, session: Session, caller: Authenticated) -> dict[str, Any]:
    """Shows one member."""
    return await service.member(session, caller, project_id, user_id)


@router.put("/{project_id}/members/{user_id}")
async def put_member(
    project_id: UUID, user_id: UUID, body: MemberIn, session: PeopleSession, caller: Authenticated
) -> Response:
    """Makes a user a member, or changes a member's role."""
    view, is_new = await service.put_member(session, caller, project_id, user_id, body)
    return Response(to_json(view), 201 if is_new else 200, media_type=JSON)


@router.delete("/{project_id}/members/{user_id}", status_code=204)
async def remove_member(project_id: UUID, user_id: UUID, session: PeopleSession, caller: Authenticated) -> None:
    """Takes a member out of the project."""
    await service.remove_member(session, caller, project_id, user_id)

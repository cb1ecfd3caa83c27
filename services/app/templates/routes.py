"""The routes of templates."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from services.app.context import Context, Session
from services.app.identity.authenticate import Authenticated
from services.app.identity.idempotency import Once
from services.app.resources import Expected, answer, created
from services.app.templates import service
from services.app.templates.schemas import TemplateChange, TemplateIn, TemplateType, template_view
from shared.http.bodies import StrictRoute, fingerprint_of
from shared.http.pages import PageParams

router = APIRouter(prefix="/templates", tags=["templates"], route_class=StrictRoute)


@router.get("")
async def list_templates(
    session: Session,
    _caller: Authenticated,
    query: PageParams,
    template_type: Annotated[TemplateType | None, Query()] = None,
    builtin: Annotated[bool | None, Query()] = None,
) -> dict[str, Any]:
    """Lists templates."""
    return await service.page(session, template_type, builtin, query)


@router.post("", status_code=201)
async def create_template(
    body: TemplateIn, request: Request, context: Context, caller: Authenticated, once: Once
) -> Response:
    """Makes a template, which everyone may deploy from."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            return created(await service.create(session, caller, body), "/templates")

    return await once.run(fingerprint_of(request), work)


@router.get("/{template_id}")
async def show_template(template_id: UUID, session: Session, _caller: Authenticated) -> Response:
    """Shows a template."""
    return answer(template_view(await service.found(session, template_id)))


@router.patch("/{template_id}")
async def change_template(
    template_id: UUID, body: TemplateChange, session: Session, caller: Authenticated, expected: Expected
) -> Response:
    """Changes a template of one's own."""
    return answer(await service.change(session, caller, template_id, body, expected))


@router.delete("/{template_id}", status_code=204)
async def delete_template(template_id: UUID, session: Session, caller: Authenticated, expected: Expected) -> None:
    """Deletes a template of one's own."""
    await service.delete(session, caller, template_id, expected)

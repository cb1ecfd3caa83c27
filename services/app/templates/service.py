"""Templates: everyone sees them, whoever made one may change it, and the built-in ones stay as they are."""

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app import icons
from services.app.audit import service as audit
from services.app.identity.caller import Caller
from services.app.resources import Revisions, check_revision, save
from services.app.templates import repository
from services.app.templates.schemas import TemplateChange, TemplateIn, stored_config, template_view
from services.app.templates.tables import TemplateRow
from shared.clock import now
from shared.errors import Problem
from shared.http.pages import PageQuery


async def page(
    session: AsyncSession, template_type: str | None, builtin: bool | None, query: PageQuery
) -> dict[str, Any]:
    return (await repository.page(session, template_type, builtin, query)).envelope(template_view)


async def found(session: AsyncSession, template_id: UUID, *, lock: bool = False) -> TemplateRow:
    template = await repository.get(session, template_id, lock=lock)
    if template is None:
        raise Problem("not_found", "There is no such template.")
    return template


async def create(session: AsyncSession, caller: Caller, body: TemplateIn) -> dict[str, Any]:
    caller.require("member")
    if not caller.works_in(None):
        raise Problem("forbidden", "This key is bound to one project, and templates are everyone's.")
    _check_icon(body.icon)
    moment = now()
    template = TemplateRow(
        id=uuid4(), name=body.name, description=body.description, icon=body.icon, template_type=body.template_type,
        deploy_config=stored_config(body.deploy_config), builtin=False, created_by=caller.user_id, created_at=moment,
        updated_at=moment, revision=1,
    )  # fmt: skip
    session.add(template)
    await save(session)
    await audit.record(session, caller, "template.create", "template", template.id, name=template.name)
    return template_view(template)


async def change(
    session: AsyncSession, caller: Caller, template_id: UUID, body: TemplateChange, expected: Revisions | None
) -> dict[str, Any]:
    template = await _changeable(session, caller, template_id)
    check_revision(template, expected)
    given = body.model_dump(include=body.model_fields_set)
    _check_icon(given.get("icon"))
    if "deploy_config" in given:
        given["deploy_config"] = stored_config(body.deploy_config)
    changed = {name: value for name, value in given.items() if getattr(template, name) != value}
    if changed:
        for name, value in changed.items():
            setattr(template, name, value)
        template.revision += 1
        template.updated_at = now()
        await save(session)
        await audit.record(session, caller, "template.change", "template", template_id, **changed)
    return template_view(template)


async def delete(session: AsyncSession, caller: Caller, template_id: UUID, expected: Revisions | None) -> None:
    """Delete a template; what was deployed from it keeps its own configuration."""
    template = await _changeable(session, caller, template_id)
    check_revision(template, expected)
    await session.delete(template)
    await session.flush()
    await audit.record(session, caller, "template.delete", "template", template_id, name=template.name)


async def _changeable(session: AsyncSession, caller: Caller, template_id: UUID) -> TemplateRow:
    template = await found(session, template_id, lock=True)
    caller.require("member")
    if template.builtin:
        raise Problem("builtin", "Built-in templates stay as they are; make one of your own.")
    caller.check_works_in(None, "template", template.created_by)
    return template


def _check_icon(icon: str | None) -> None:
    if icon and icons.resolve(icon) is None:
        raise Problem("validation_failed", "The icon is not one of GET /icons.", param="icon")

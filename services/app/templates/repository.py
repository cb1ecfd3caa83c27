"""Queries of templates."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.templates.tables import TemplateRow
from shared.http.pages import Listing, Page, PageQuery, paginate

TEMPLATES = Listing(
    id=TemplateRow.id,
    sortable={"created_at": TemplateRow.created_at, "name": TemplateRow.name, "updated_at": TemplateRow.updated_at},
    default="name",
    search=[TemplateRow.name, TemplateRow.description],
)

# A new built-in template makes way for one of a user's that has its name already.
_SEED = text("""
    INSERT INTO platform.template AS known (id, name, description, icon, template_type, deploy_config, builtin)
    VALUES (:id, CASE WHEN EXISTS (SELECT 1 FROM platform.template o WHERE o.name = :name AND o.id <> :id)
                      THEN :name || ' (' || left(CAST(:id AS text), 8) || ')' ELSE :name END,
            :description, :icon, :template_type, CAST(:deploy_config AS jsonb), true)
    ON CONFLICT (id) DO UPDATE
       SET name = excluded.name, description = excluded.description, icon = excluded.icon,
           template_type = excluded.template_type, deploy_config = excluded.deploy_config,
           revision = known.revision + 1, updated_at = clock_timestamp()
     WHERE (known.name, known.description, known.icon, known.template_type, known.deploy_config)
           IS DISTINCT FROM (excluded.name, excluded.description, excluded.icon, excluded.template_type,
                             excluded.deploy_config)""")


async def get(session: AsyncSession, template_id: UUID, *, lock: bool = False) -> TemplateRow | None:
    return await session.get(TemplateRow, template_id, populate_existing=True, with_for_update=lock)


async def page(
    session: AsyncSession, template_type: str | None, builtin: bool | None, query: PageQuery
) -> Page[TemplateRow]:
    statement: Select[Any] = select(TemplateRow)
    if template_type is not None:
        statement = statement.where(TemplateRow.template_type == template_type)
    if builtin is not None:
        statement = statement.where(TemplateRow.builtin.is_(builtin))
    return await paginate(session, statement, TEMPLATES, query)


async def seed(session: AsyncSession, values: list[dict[str, Any]]) -> None:
    await session.execute(_SEED, values)

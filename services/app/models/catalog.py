"""The catalogue in the database: seeded at every start from `catalogue/`, and listed for those who choose a model."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.identity.caller import Caller
from services.app.models import catalogue
from services.app.models.tables import CloudModelRow, ModelRow, ProviderRow
from services.app.resources import text_of
from shared.db.base import Base
from shared.db.engine import Database
from shared.http.pages import Listing, PageQuery, paginate

PROVIDERS = Listing(
    id=ProviderRow.id,
    sortable={"name": ProviderRow.name, "key": ProviderRow.key},
    default="name",
    search=[ProviderRow.name, ProviderRow.key],
)
CLOUD_MODELS = Listing(
    id=CloudModelRow.id,
    sortable={
        "name": CloudModelRow.name,
        "context_length": CloudModelRow.context_length,
        "input_price": CloudModelRow.input_price,
        "output_price": CloudModelRow.output_price,
    },
    default="name",
    search=[CloudModelRow.name, CloudModelRow.uri, CloudModelRow.description],
)


# ---- at the start


async def seed(database: Database) -> None:
    """Bring providers and cloud models to what the data file says, in one transaction. Nothing is ever taken out."""
    providers = [
        {
            "id": one.id, "key": one.key, "type": one.type.value, "name": one.name, "description": one.description,
            "icon": one.icon, "credential_type": one.credential_type,
        }
        for one in catalogue.providers()
    ]  # fmt: skip
    models = [
        {
            "id": one.id, "provider_id": one.provider_id, "name": one.name, "uri": one.uri, "description": None,
            "modality": [modality.value for modality in one.modality], "tags": [tag.model_dump() for tag in one.tags],
            "context_length": one.context_length, "max_output": one.max_output, "input_price": one.input_price,
            "output_price": one.output_price, "deprecated": one.deprecated,
        }
        for one in catalogue.cloud_models()
    ]  # fmt: skip
    async with database.transaction() as session:
        await _upsert(session, ProviderRow, providers)
        await _upsert(session, CloudModelRow, models)


async def _upsert(session: AsyncSession, table: type[Base], values: list[dict[str, Any]]) -> None:
    """In the order of ids, so that two processes that start together wait for each other rather than block."""
    statement = insert(table).values(sorted(values, key=lambda row: row["id"]))
    changes = {name: statement.excluded[name] for name in values[0] if name != "id"}
    await session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changes))


# ---- lists


async def providers(session: AsyncSession, query: PageQuery, *, type: str | None = None) -> dict[str, Any]:
    """A page of providers, each with the number of its cloud models."""
    count = select(func.count()).where(CloudModelRow.provider_id == ProviderRow.id).scalar_subquery()
    statement: Select[Any, Any] = select(ProviderRow, count)
    if type is not None:
        statement = statement.where(ProviderRow.type == type)
    return (await paginate(session, statement, PROVIDERS, query)).envelope(_provider_view)


async def page(
    session: AsyncSession,
    query: PageQuery,
    *,
    caller: Caller | None = None,
    provider_id: UUID | None = None,
    modality: str | None = None,
    tag: str | None = None,
    deprecated: bool | None = None,
    added: bool | None = None,
) -> dict[str, Any]:
    """A page of the catalogue's cloud models. `added`: whether the platform has the model already.

    A caller learns of models that they see; without one, all models count.
    """
    model = (
        select(ModelRow.id)
        .where(ModelRow.cloud_model_id == CloudModelRow.id, ModelRow.state.in_(["importing", "active"]))
        .order_by(ModelRow.created_at, ModelRow.id)
        .limit(1)
    )
    if caller is not None:
        model = model.where(caller.visible(ModelRow.project_id))
    model_id = model.scalar_subquery()
    statement: Select[Any, Any, Any] = select(CloudModelRow, ProviderRow, model_id).join(
        ProviderRow, ProviderRow.id == CloudModelRow.provider_id
    )
    if provider_id is not None:
        statement = statement.where(CloudModelRow.provider_id == provider_id)
    if modality is not None:
        statement = statement.where(CloudModelRow.modality.contains([modality]))
    if tag is not None:
        statement = statement.where(CloudModelRow.tags.contains([{"name": tag}]))
    if deprecated is not None:
        statement = statement.where(CloudModelRow.deprecated.is_(deprecated))
    if added is not None:
        statement = statement.where(model_id.is_not(None) if added else model_id.is_(None))
    return (await paginate(session, statement, CLOUD_MODELS, query)).envelope(_model_view)


def _provider_view(row: tuple[ProviderRow, int]) -> dict[str, Any]:
    provider, count = row
    return {
        "object": "provider",
        "id": str(provider.id),
        "key": provider.key,
        "type": provider.type,
        "name": provider.name,
        "description": provider.description,
        "icon": provider.icon,
        "credential_type": provider.credential_type,
        "cloud_models": count,
    }


def _model_view(row: tuple[CloudModelRow, ProviderRow, UUID | None]) -> dict[str, Any]:
    """Lengths in tokens, prices in US dollars per million of them; null is unknown, or not billed by tokens."""
    model, provider, model_id = row
    return {
        "object": "cloud_model",
        "id": str(model.id),
        "name": model.name,
        "uri": model.uri,
        "provider_id": str(model.provider_id),
        "provider": {"id": str(provider.id), "key": provider.key, "name": provider.name, "icon": provider.icon},
        "icon": provider.icon,
        "description": model.description,
        "modality": model.modality,
        "tags": model.tags,
        "context_length": model.context_length,
        "max_output": model.max_output,
        "input_price": model.input_price,
        "output_price": model.output_price,
        "deprecated": model.deprecated,
        "added": model_id is not None,
        "model_id": text_of(model_id),
    }

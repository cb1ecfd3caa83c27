"""Queries of models, the catalogue and scans."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.endpoints.tables import EndpointRow
from services.app.identity.caller import Caller
from services.app.models.tables import CloudModelRow, ModelFileRow, ModelRow, ProviderRow, ScanOverrideRow, ScanRow
from shared.http.pages import Listing, Page, PageQuery, paginate

LISTING = Listing(
    id=ModelRow.id,
    sortable={"created_at": ModelRow.created_at, "name": ModelRow.name},
    default="-created_at",
    search=[ModelRow.name, ModelRow.uri, ModelRow.author],
)
# Made once: wizards ask for these at every step.
_GET = select(ModelRow).where(ModelRow.id == bindparam("model")).execution_options(populate_existing=True)
_LOCK = _GET.with_for_update()
_LIVE_NAME = select(ModelRow.id).where(ModelRow.name == bindparam("name"), ModelRow.state.in_(["importing", "active"]))
SCANS = Listing(
    id=ScanRow.id, sortable={"created_at": ScanRow.created_at}, default="-created_at", search=[ScanRow.status]
)
OVERRIDES = Listing(
    id=ScanOverrideRow.id, sortable={"created_at": ScanOverrideRow.created_at}, default="created_at",
    search=[ScanOverrideRow.reason],
)  # fmt: skip


async def get(session: AsyncSession, model_id: UUID, *, lock: bool = False) -> ModelRow | None:
    return (await session.execute(_LOCK if lock else _GET, {"model": model_id})).scalar_one_or_none()


async def provider(session: AsyncSession, provider_id: UUID) -> ProviderRow | None:
    return await session.get(ProviderRow, provider_id)


async def provider_of_type(session: AsyncSession, type_: str) -> UUID | None:
    return (
        await session.execute(select(ProviderRow.id).where(ProviderRow.type == type_).limit(1))
    ).scalar_one_or_none()


async def cloud_model(session: AsyncSession, cloud_model_id: UUID) -> CloudModelRow | None:
    return await session.get(CloudModelRow, cloud_model_id)


async def id_of_live_name(session: AsyncSession, name: str) -> UUID | None:
    return (await session.execute(_LIVE_NAME, {"name": name})).scalar_one_or_none()


async def page(session: AsyncSession, caller: Caller, filters: dict[str, Any], query: PageQuery) -> Page[ModelRow]:
    statement: Select[Any] = select(ModelRow).where(caller.visible(ModelRow.project_id))
    state = filters.pop("state", None)
    statement = statement.where(ModelRow.state == state) if state else statement.where(ModelRow.state != "deleted")
    modality, tag, source = filters.pop("modality", None), filters.pop("tag", None), filters.pop("source", None)
    if modality:
        statement = statement.where(ModelRow.modality.contains([modality]))
    if tag:
        statement = statement.where(ModelRow.tags.contains([{"name": tag}]))
    if source:
        cloud = ModelRow.provider_type == "cloud_model"
        statement = statement.where(cloud if source == "cloud" else ~cloud)
    project = filters.pop("project_id", None)
    if project:  # what may be used there: its own, and everyone's
        statement = statement.where((ModelRow.project_id == project) | ModelRow.project_id.is_(None))
    for name, value in filters.items():
        if value is not None:
            statement = statement.where(getattr(ModelRow, name) == value)
    return await paginate(session, statement, LISTING, query)


async def live_endpoints(session: AsyncSession, model_id: UUID) -> list[str]:
    """The names of endpoints that still serve the model."""
    statement = select(EndpointRow.name).where(
        EndpointRow.model_id == model_id, EndpointRow.state.not_in(["failed", "deleted"])
    )
    return list((await session.execute(statement.limit(5))).scalars())


async def files(session: AsyncSession, model_id: UUID) -> list[ModelFileRow]:
    """Of a model that is there; what an import has claimed meanwhile is none of them."""
    there = select(ModelRow.id).where(ModelRow.id == model_id, ModelRow.state == "active")
    statement = select(ModelFileRow).where(ModelFileRow.model_id.in_(there)).order_by(ModelFileRow.path)
    return list((await session.execute(statement)).scalars())


# ---- scans


async def latest_scan(session: AsyncSession, model_id: UUID, digest: str | None = None) -> ScanRow | None:
    """The latest ended scan, of the given files."""
    statement = select(ScanRow).where(ScanRow.model_id == model_id, ScanRow.status.not_in(["running", "cancelled"]))
    if digest is not None:
        statement = statement.where(ScanRow.digest == digest)
    return (await session.execute(statement.order_by(ScanRow.created_at.desc()).limit(1))).scalar_one_or_none()


async def running_scan(session: AsyncSession, model_id: UUID) -> ScanRow | None:
    statement = select(ScanRow).where(ScanRow.model_id == model_id, ScanRow.status == "running")
    return (await session.execute(statement)).scalar_one_or_none()


async def scan_of_job(session: AsyncSession, job_id: UUID) -> ScanRow | None:
    statement = select(ScanRow).where(ScanRow.job_id == job_id).execution_options(populate_existing=True)
    return (await session.execute(statement)).scalar_one_or_none()


async def scans(session: AsyncSession, model_id: UUID, query: PageQuery) -> Page[ScanRow]:
    return await paginate(session, select(ScanRow).where(ScanRow.model_id == model_id), SCANS, query)


async def override(session: AsyncSession, model_id: UUID, digest: str) -> ScanOverrideRow | None:
    statement = select(ScanOverrideRow).where(
        ScanOverrideRow.model_id == model_id, ScanOverrideRow.digest == digest, ScanOverrideRow.revoked_at.is_(None)
    )
    return (await session.execute(statement.limit(1))).scalar_one_or_none()


async def overrides(session: AsyncSession, model_id: UUID, query: PageQuery) -> Page[ScanOverrideRow]:
    statement = select(ScanOverrideRow).where(ScanOverrideRow.model_id == model_id)
    return await paginate(session, statement, OVERRIDES, query)


async def revoke_override(session: AsyncSession, model_id: UUID, override_id: UUID) -> bool:
    statement = (
        update(ScanOverrideRow)
        .where(ScanOverrideRow.id == override_id, ScanOverrideRow.model_id == model_id)
        .values(revoked_at=func.coalesce(ScanOverrideRow.revoked_at, func.now()))
        .returning(ScanOverrideRow.id)
    )
    return (await session.execute(statement)).scalar_one_or_none() is not None


async def scan(session: AsyncSession, model_id: UUID, scan_id: UUID) -> ScanRow | None:
    statement = select(ScanRow).where(ScanRow.id == scan_id, ScanRow.model_id == model_id)
    return (await session.execute(statement)).scalar_one_or_none()

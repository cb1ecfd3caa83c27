"""The routes of models, their scans and overrides."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from services.app.audit import service as audit
from services.app.context import Context, Session
from services.app.identity.authenticate import Authenticated
from services.app.identity.idempotency import Once
from services.app.models import catalog, holdings, repository, scans, service
from services.app.models.schemas import ModelChange, OverrideIn
from services.app.models.tables import MODEL_STATES, SCAN_STATES, ScanOverrideRow
from services.app.resources import JSON, Among, Expected, FilterText
from services.app.wizards.fields import ProviderType
from shared.clock import iso
from shared.contracts.models import Modality
from shared.errors import Problem
from shared.http.bodies import StrictRoute, fingerprint_of
from shared.http.pages import PageParams

router = APIRouter(prefix="/models", tags=["models"], route_class=StrictRoute)


@router.get("")
async def list_models(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    source: Annotated[Literal["catalog", "cloud", "local"] | None, Query()] = None,
    provider_type: Annotated[ProviderType | None, Query()] = None,
    provider_id: Annotated[UUID | None, Query()] = None,
    project_id: Annotated[UUID | None, Query()] = None,
    state: Annotated[Annotated[str, Among(MODEL_STATES)] | None, Query()] = None,
    modality: Annotated[Modality | None, Query()] = None,
    tag: Annotated[FilterText | None, Query()] = None,
    scan_status: Annotated[Annotated[str, Among(SCAN_STATES)] | None, Query()] = None,
    name: Annotated[FilterText | None, Query()] = None,
) -> dict[str, Any]:
    """Lists models. `source=catalog`: cloud models that could be added."""
    if source == "catalog":
        return await catalog.page(
            session, query, caller=caller, added=False, provider_id=provider_id, modality=modality, tag=tag
        )
    filters = {
        "provider_type": provider_type, "provider_id": provider_id, "project_id": project_id, "state": state,
        "modality": modality, "tag": tag, "source": source, "scan_status": scan_status, "name": name,
    }  # fmt: skip
    return (await repository.page(session, caller, filters, query)).envelope(service.view)


@router.get("/{model_id}")
async def show_model(model_id: UUID, session: Session, caller: Authenticated, response: Response) -> dict[str, Any]:
    """Shows a model with its files."""
    model = await service.visible(session, caller, model_id)
    response.headers["ETag"] = f'"{model.revision}"'
    files = await repository.files(session, model_id)
    return {**service.view(model), "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in files]}


@router.patch("/{model_id}")
async def change_model(
    model_id: UUID, body: ModelChange, session: Session, caller: Authenticated, expected: Expected
) -> dict[str, Any]:
    """Changes how a model is known: name, description, author, icon, tags."""
    given = body.model_dump(mode="json", exclude_unset=True)
    return service.view(await service.change(session, caller, model_id, given, expected))


@router.delete("/{model_id}", status_code=204)
async def delete_model(model_id: UUID, context: Context, caller: Authenticated, expected: Expected) -> None:
    """Deletes a model that nothing serves; its bytes go when no other model has them."""
    async with context.database.transaction() as session:
        keys = await service.delete(session, caller, model_id, expected)
    await holdings.free_model(context, model_id, keys)


# ---- scans


@router.get("/{model_id}/scans")
async def list_scans(model_id: UUID, session: Session, caller: Authenticated, query: PageParams) -> dict[str, Any]:
    """The history of a model's scans, newest first."""
    await service.visible(session, caller, model_id)
    return (await repository.scans(session, model_id, query)).envelope(scans.view)


@router.get("/{model_id}/scans/{scan_id}")
async def show_scan(model_id: UUID, scan_id: UUID, session: Session, caller: Authenticated) -> dict[str, Any]:
    """One scan with its whole report."""
    await service.visible(session, caller, model_id)
    scan = await repository.scan(session, model_id, scan_id)
    if scan is None:
        raise Problem("not_found", "There is no such scan.")
    return scans.view(scan, whole=True)


@router.get("/{model_id}/scan-overrides")
async def list_overrides(model_id: UUID, session: Session, caller: Authenticated, query: PageParams) -> dict[str, Any]:
    """The recorded overrides of the scan gate for this model."""
    await service.visible(session, caller, model_id)
    return (await repository.overrides(session, model_id, query)).envelope(_override)


@router.post("/{model_id}/scan-overrides", status_code=201)
async def make_override(
    model_id: UUID, body: OverrideIn, request: Request, context: Context, caller: Authenticated, once: Once
) -> Response:
    """An admin lets the model's present files be deployed in spite of their scan, and says why."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            made = _override(await scans.record_override(session, caller, model_id, body.reason))
        return Response(to_json(made), 201, media_type=JSON)

    return await once.run(fingerprint_of(request), work)


@router.delete("/{model_id}/scan-overrides/{override_id}", status_code=204)
async def revoke_override(model_id: UUID, override_id: UUID, session: Session, caller: Authenticated) -> None:
    """Takes an override back. What has been deployed stays."""
    model = await service.visible(session, caller, model_id)
    scans.check_may_override(caller, model)
    if not await repository.revoke_override(session, model_id, override_id):
        raise Problem("not_found", "There is no such override.")
    await audit.record(session, caller, "scan.override_revoke", "model", model_id, project_id=model.project_id)


def _override(row: ScanOverrideRow) -> dict[str, Any]:
    return {
        "object": "scan_override", "id": str(row.id), "model_id": str(row.model_id), "digest": row.digest,
        "reason": row.reason, "created_by": str(row.created_by), "created_at": iso(row.created_at),
        "revoked_at": iso(row.revoked_at),
    }  # fmt: skip

"""Models: what they look like, the checks that wizards make of their fields, changes and deletion."""

from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app import icons
from services.app.audit import service as audit
from services.app.identity.caller import Caller
from services.app.models import holdings, repository
from services.app.models.tables import ModelRow
from services.app.resources import Revisions, check_revision, save
from services.app.wizards.contract import Fields
from shared.clock import iso
from shared.contracts.models import Source
from shared.errors import Fault, Problem
from shared.security import uris
from shared.security.uris import InvalidUri, check_uri
from shared.settings import Settings

RESULT_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": "model"},
        "id": {"type": "string", "format": "uuid"},
        "name": {"type": "string"},
        "href": {"type": "string"},
        "digest": {"type": ["string", "null"]},
        "size": {"type": ["integer", "null"]},
        "modality": {"type": "array", "items": {"type": "string"}},
    },
}


def view(model: ModelRow) -> dict[str, Any]:
    """A model on the wire. Unknown facts are null."""
    return {
        "object": "model",
        "id": str(model.id),
        "name": model.name,
        "provider_type": model.provider_type,
        "provider_id": _text(model.provider_id),
        "cloud_model_id": _text(model.cloud_model_id),
        "uri": model.uri,
        "author": model.author,
        "description": model.description,
        "icon": model.icon,
        "tags": model.tags,
        "modality": model.modality,
        "state": model.state,
        "reason": model.reason,
        "source_revision": model.source_revision,
        "digest": model.digest,
        "size": model.size,
        "metadata": model.facts,
        "scan_status": model.scan_status,
        "credential_id": _text(model.credential_id),
        "project_id": _text(model.project_id),
        "created_by": _text(model.created_by),
        "created_at": iso(model.created_at),
        "updated_at": iso(model.updated_at),
        "revision": model.revision,
    }


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)


async def result_of(session: AsyncSession, model_id: UUID) -> dict[str, Any] | None:
    model = await repository.get(session, model_id)
    if model is None:
        return None
    return {
        "type": "model", "id": str(model.id), "name": model.name, "href": f"/models/{model.id}", "digest": model.digest,
        "size": model.size, "modality": model.modality,
    }  # fmt: skip


# ---- what wizards check


async def check_details(session: AsyncSession, caller: Caller, fields: Fields, changed: set[str]) -> list[Fault]:
    """Faults of the fields that every model has: the icon must be one of ours, the project one that they work in."""
    faults: list[Fault] = []
    if "icon" in changed and fields.get("icon") and icons.resolve(fields["icon"]) is None:
        faults.append(Fault("icon", "unknown_icon", "is not an icon of GET /icons"))
    if "project_id" in changed and fields.get("project_id") and not caller.works_in(UUID(fields["project_id"])):
        faults.append(Fault("project_id", "not_a_member", "is a project that you may only read"))
    return faults


def cloud_uri_faults(uri: str) -> list[Fault]:
    provider, _, name = uri.partition("/")
    if not provider or not name or any(character.isspace() for character in uri) or "://" in uri:
        return [Fault("uri", "invalid_uri", "must look like provider/model, for example openai/gpt4")]
    return secret_uri_faults(uri)


def local_uri_faults(settings: Settings, source: Source, uri: str) -> list[Fault]:
    """Syntax, and for a path whether it is below a folder that the installation allows."""
    try:
        check_uri(source, uri)
    except InvalidUri as error:
        return [Fault("uri", error.code, error.message)]
    if source is Source.DISK:
        roots = [PurePosixPath(root) for root in settings.model_roots]
        if not any(PurePosixPath(uri).is_relative_to(root) for root in roots):
            return [Fault("uri", "outside_roots", "must be below one of the folders of STEPWAY_MODEL_ROOTS")]
    return []


def secret_uri_faults(uri: str) -> list[Fault]:
    """A uri that holds a credential is refused before its source is known."""
    for source in Source:
        try:
            check_uri(source, uri)
        except InvalidUri as error:
            if error.code == "credentials_in_uri":
                return [Fault("uri", error.code, error.message)]
    return []


def revision_faults(revision: str) -> list[Fault]:
    try:
        uris.check_revision(revision)
    except InvalidUri as error:
        return [Fault("revision", error.code, error.message)]
    return []


def check_may_add(caller: Caller, project_id: UUID | None) -> None:
    """At the trigger: a membership may have ended since the step; a key that is bound to a project adds to that one."""
    if not caller.works_in(project_id):
        where = "in this project" if project_id else "outside the project that this key is bound to"
        raise Problem("forbidden", f"You may not add models {where}.", param="project_id")


async def check_name_free(session: AsyncSession, name: str | None) -> None:
    if name and await repository.id_of_live_name(session, name) is not None:
        raise Problem("name_taken", "A model of this name exists already.", param="name")


# ---- one model


async def visible(session: AsyncSession, caller: Caller, model_id: UUID, *, lock: bool = False) -> ModelRow:
    model = await repository.get(session, model_id, lock=lock)
    if model is None or model.state == "deleted":
        raise Problem("not_found", "There is no such model.")
    caller.check_sees(model.project_id, "model")
    return model


async def changeable(session: AsyncSession, caller: Caller, model_id: UUID) -> ModelRow:
    model = await visible(session, caller, model_id, lock=True)
    caller.check_works_in(model.project_id, "model", model.created_by)
    return model


async def change(
    session: AsyncSession, caller: Caller, model_id: UUID, given: dict[str, Any], expected: Revisions | None
) -> ModelRow:
    """Change name, description, author, icon or tags."""
    model = await changeable(session, caller, model_id)
    check_revision(model, expected)
    if "name" in given and given["name"] != model.name:
        await check_name_free(session, given["name"])
    if given.get("icon") and icons.resolve(given["icon"]) is None:
        raise Problem("validation_failed", "The icon is not one of GET /icons.", param="icon")
    for name, value in given.items():
        setattr(model, name, value)
    model.revision += 1
    model.updated_at = datetime.now(UTC)
    await save(session)
    await audit.record(
        session, caller, "model.change", "model", model_id, project_id=model.project_id, fields=sorted(given)
    )
    return model


async def delete(session: AsyncSession, caller: Caller, model_id: UUID, expected: Revisions | None = None) -> list[str]:
    """Delete a model that nothing serves. Returns the keys of objects that may go once this is committed."""
    model = await changeable(session, caller, model_id)
    check_revision(model, expected)
    if model.state == "importing":
        raise Problem("conflict", "The model is being imported; cancel its job first.")
    serving = await repository.live_endpoints(session, model_id)
    if serving:
        raise Problem("in_use", f"Endpoints still serve this model: {', '.join(serving)}.")
    if await repository.running_scan(session, model_id) is not None:
        raise Problem("conflict", "The model is being scanned; cancel its job first.")
    model.state, model.deleted_at = "deleted", datetime.now(UTC)
    model.revision += 1
    await audit.record(session, caller, "model.delete", "model", model_id, project_id=model.project_id, name=model.name)
    return await holdings.release(session, model_id)

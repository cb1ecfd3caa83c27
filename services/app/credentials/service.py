"""Credentials: sealed when they come, shown without their secrets, opened only for a job's step that needs them."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.credentials import repository
from services.app.credentials.schemas import CredentialChange, CredentialIn, credential_view
from services.app.credentials.tables import CredentialRow
from services.app.identity.caller import Caller
from services.app.models.catalogue import CredentialType, credential_type
from services.app.resources import Revisions, check_project, check_revision, save
from shared.clock import now
from shared.errors import Fault, Problem
from shared.http.pages import PageQuery
from shared.security.envelope import Keyring, Sealed


def seal_context(credential_id: UUID) -> str:
    return f"credential:{credential_id}"


# ---- for people


async def page(
    session: AsyncSession, caller: Caller, type_: str | None, project_id: UUID | None, query: PageQuery
) -> dict[str, Any]:
    await check_project(session, caller, project_id)
    return (await repository.page(session, caller, type_, project_id, query)).envelope(credential_view)


async def visible(session: AsyncSession, caller: Caller, credential_id: UUID, *, lock: bool = False) -> CredentialRow:
    """The caller's own, a project's that they see, and for admins everyone's; else `not_found`.

    A key that is bound to a project reaches that project's only.
    """
    credential = await repository.get(session, credential_id, lock=lock)
    if credential is None or not _sees(caller, credential):
        raise Problem("not_found", "There is no such credential.")
    return credential


def _sees(caller: Caller, credential: CredentialRow) -> bool:
    if credential.project_id is None:
        return caller.only_project is None and (credential.owner_id == caller.user_id or caller.role == "admin")
    return caller.sees(credential.project_id)


async def create(session: AsyncSession, keyring: Keyring, caller: Caller, body: CredentialIn) -> dict[str, Any]:
    caller.require("member")
    kind = credential_type(body.type)
    if kind is None:
        message = "is not one of GET /credential-types"
        raise Problem("validation_failed", f"type {message}.", faults=[Fault("type", "not_allowed", message)])
    await _check_project(session, caller, body.project_id)
    credential_id, moment = uuid4(), now()
    plain, secret = _split(kind, body.fields)
    credential = CredentialRow(
        id=credential_id, name=body.name, type=kind.key, owner_id=caller.user_id, project_id=body.project_id,
        fields=plain, sealed=_seal(keyring, credential_id, secret), secrets=sorted(secret), created_at=moment,
        updated_at=moment, revision=1,
    )  # fmt: skip
    session.add(credential)
    await save(session)
    await _record(session, caller, "credential.create", credential, type=credential.type)
    return credential_view(credential)


async def change(
    session: AsyncSession,
    keyring: Keyring,
    caller: Caller,
    credential_id: UUID,
    body: CredentialChange,
    expected: Revisions | None,
) -> dict[str, Any]:
    """Rename, or replace all fields."""
    credential = await _changeable(session, caller, credential_id)
    check_revision(credential, expected)
    given = body.model_fields_set
    if "name" in given:
        credential.name = body.name
    if "fields" in given:
        kind = credential_type(credential.type)
        if kind is None:
            raise Problem("conflict", f"Credentials of the type {credential.type} are not known any more.")
        plain, secret = _split(kind, body.fields)
        credential.fields, credential.secrets = plain, sorted(secret)
        credential.sealed = _seal(keyring, credential_id, secret)
    if given:
        credential.revision += 1
        credential.updated_at = now()
        await save(session)
        await _record(session, caller, "credential.change", credential, changed=sorted(given))
    return credential_view(credential)


async def delete(session: AsyncSession, caller: Caller, credential_id: UUID, expected: Revisions | None) -> None:
    """Delete it for ever; `in_use` while a live endpoint uses it."""
    credential = await _changeable(session, caller, credential_id)
    check_revision(credential, expected)
    if names := await repository.live_endpoints(session, credential_id):
        raise Problem("in_use", f"Endpoints use this credential: {', '.join(names)}.")
    await session.delete(credential)
    await session.flush()
    await _record(session, caller, "credential.delete", credential)


async def _changeable(session: AsyncSession, caller: Caller, credential_id: UUID) -> CredentialRow:
    credential = await visible(session, caller, credential_id, lock=True)
    caller.require("member")
    if credential.project_id is not None and not caller.works_in(credential.project_id):
        raise Problem("not_owner", "This credential belongs to a project that you may only read.")
    return credential


async def _check_project(session: AsyncSession, caller: Caller, project_id: UUID | None) -> None:
    if project_id is None:
        if caller.only_project is not None:
            raise Problem("forbidden", "This key is bound to one project; name that as project_id.")
        return
    await check_project(session, caller, project_id)
    if not caller.works_in(project_id):
        raise Problem("forbidden", "You may only read in this project.", param="project_id")


def _split(kind: CredentialType, values: Mapping[str, str | None]) -> tuple[dict[str, str], dict[str, str]]:
    """The plain and the secret fields. Raises every fault at once; none repeats a value."""
    faults = kind.faults(values)
    if faults:
        placed = [Fault(f"fields.{fault.param}", fault.code, fault.message) for fault in faults]
        detail = placed[0].message if len(placed) == 1 else f"{len(placed)} fields are wrong; see errors."
        raise Problem("validation_failed", detail, faults=placed)
    given = {name: value for name, value in values.items() if value}
    secret = {name: value for name, value in given.items() if name in kind.secret_fields}
    return {name: value for name, value in given.items() if name not in secret}, secret


def _seal(keyring: Keyring, credential_id: UUID, secret: Mapping[str, str]) -> Sealed:
    """Called inside a transaction that has begun, as key rotation relies on."""
    return keyring.seal(json.dumps(secret).encode(), seal_context(credential_id))


async def _record(
    session: AsyncSession, caller: Caller, action: str, credential: CredentialRow, **details: Any
) -> None:
    project_id = credential.project_id
    await audit.record(
        session, caller, action, "credential", credential.id, project_id=project_id, name=credential.name, **details
    )


# ---- for wizards and jobs


async def check_usable(session: AsyncSession, caller: Caller, credential_id: UUID, project_id: UUID | None) -> None:
    """Whether the caller may use it for something in the project: it is their own, or of that very project.

    Problem `reference_not_found` otherwise, the same as for one that is not there.
    """
    credential = await repository.get(session, credential_id)
    if credential is not None:
        own = credential.project_id is None and credential.owner_id == caller.user_id and caller.only_project is None
        shared = (
            credential.project_id is not None and credential.project_id == project_id and caller.works_in(project_id)
        )
        if own or shared:
            return
    raise Problem("reference_not_found", "There is no such credential for this project.", param="credential_id")


async def parameter_names(session: AsyncSession, credential_id: UUID) -> list[str]:
    """Which of LiteLLM's parameters it gives. It stays sealed, and does not count as used."""
    credential = await repository.get(session, credential_id)
    kind = credential_type(credential.type) if credential is not None else None
    if credential is None or kind is None:
        return []
    return sorted(kind.parameters(dict.fromkeys([*credential.fields, *credential.secrets], "given")))


async def reveal(session: AsyncSession, keyring: Keyring, credential_id: UUID) -> dict[str, str]:
    """All fields, the secret ones in clear: for a job's step at the moment of use, never for an answer.

    Problem `not_found` when it has been deleted; SealError when its key is gone.
    """
    credential = await repository.get(session, credential_id)
    if credential is None:
        raise Problem("not_found", "There is no such credential any more.")
    secret: dict[str, str] = json.loads(keyring.open(credential.sealed, seal_context(credential_id)))
    await repository.mark_used(session, credential_id)
    return {**credential.fields, **secret}

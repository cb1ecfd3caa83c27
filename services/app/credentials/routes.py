"""The routes of credentials and their types."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from services.app.context import Context, Session
from services.app.credentials import service
from services.app.credentials.schemas import CredentialChange, CredentialIn, credential_view, type_view
from services.app.identity.authenticate import Authenticated
from services.app.identity.idempotency import Once
from services.app.models.catalogue import credential_types
from services.app.resources import Among, Expected, answer, created, listed
from shared.http.bodies import StrictRoute, fingerprint_of
from shared.http.pages import PageParams

router = APIRouter(tags=["credentials"], route_class=StrictRoute)
CREDENTIAL_TYPES = tuple(kind.key for kind in credential_types())


@router.get("/credential-types")
async def list_credential_types(_caller: Authenticated, query: PageParams) -> dict[str, Any]:
    """Lists the kinds of credentials with their fields, and a JSON Schema of each for forms."""
    return listed([type_view(kind) for kind in credential_types()], query, "name", "key")


@router.get("/credentials")
async def list_credentials(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    type: Annotated[Annotated[str, Among(CREDENTIAL_TYPES)] | None, Query()] = None,
    project_id: Annotated[UUID | None, Query()] = None,
) -> dict[str, Any]:
    """Lists one's own credentials and those of one's projects; with `project_id` those that may be used in it."""
    return await service.page(session, caller, type, project_id, query)


@router.post("/credentials", status_code=201)
async def create_credential(
    body: CredentialIn, request: Request, context: Context, caller: Authenticated, once: Once
) -> Response:
    """Keeps a credential. Its secret fields are encrypted, and never shown again."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            return created(await service.create(session, context.keyring, caller, body), "/credentials")

    return await once.run(fingerprint_of(request), work)


@router.get("/credentials/{credential_id}")
async def show_credential(credential_id: UUID, session: Session, caller: Authenticated) -> Response:
    """Shows a credential: its plain fields, and the names of the secret ones."""
    return answer(credential_view(await service.visible(session, caller, credential_id)))


@router.patch("/credentials/{credential_id}")
async def change_credential(
    credential_id: UUID,
    body: CredentialChange,
    context: Context,
    session: Session,
    caller: Authenticated,
    expected: Expected,
) -> Response:
    """Renames a credential, or replaces all its fields."""
    return answer(await service.change(session, context.keyring, caller, credential_id, body, expected))


@router.delete("/credentials/{credential_id}", status_code=204)
async def delete_credential(credential_id: UUID, session: Session, caller: Authenticated, expected: Expected) -> None:
    """Deletes a credential that no live endpoint uses."""
    await service.delete(session, caller, credential_id, expected)

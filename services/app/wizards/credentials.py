"""Whether a credential is of the type that its use calls for; whose it is, `references` and the trigger look at."""

from uuid import UUID

from services.app.credentials import repository
from services.app.wizards.contract import Fields, Visit
from shared.errors import Fault


async def type_faults(visit: Visit, field: str, fields: Fields, wanted: str | None) -> list[Fault]:
    """`wrong_credential_type` when the field names a credential of another type. `wanted` None: any will do."""
    if wanted is None or not fields.get(field):
        return []
    credential = await repository.get(visit.session, UUID(fields[field]))
    if credential is None or credential.type == wanted:
        return []
    return [Fault(field, "wrong_credential_type", f"This needs a credential of the type {wanted}.")]

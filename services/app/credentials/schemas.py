"""Bodies of the routes of credentials, and how these look on the wire: never with a secret."""

from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field

from services.app.credentials.tables import CredentialRow
from services.app.models.catalogue import CredentialType
from services.app.resources import text_of
from services.app.wizards.fields import Name
from shared.clock import iso


def _trimmed(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


# Only the name is trimmed: the values are kept to the letter.
TrimmedName = Annotated[Name, BeforeValidator(_trimmed)]
Values = Annotated[dict[str, str | None], Field(max_length=20)]


class Body(BaseModel):
    model_config = {"extra": "forbid"}


class CredentialIn(Body):
    """`fields` are those of the type. Without a project the credential is its owner's alone."""

    name: TrimmedName
    type: Annotated[str, Field(max_length=40)]
    fields: Values
    project_id: UUID | None = None

    def __repr__(self) -> str:
        return f"CredentialIn(name={self.name!r}, type={self.type!r})"


class CredentialChange(Body):
    """`fields` replaces all fields, the secret ones included: a secret never meets an address that it was not sent with."""

    name: TrimmedName = "unchanged"
    fields: Values = Field(default_factory=dict)

    def __repr__(self) -> str:
        return f"CredentialChange(name={self.name!r})"


def credential_view(credential: CredentialRow) -> dict[str, Any]:
    return {
        "object": "credential",
        "id": str(credential.id),
        "name": credential.name,
        "type": credential.type,
        "fields": credential.fields,
        "secrets": sorted(credential.secrets),
        "owner_id": str(credential.owner_id),
        "project_id": text_of(credential.project_id),
        "last_used_at": iso(credential.last_used_at),
        "created_at": iso(credential.created_at),
        "updated_at": iso(credential.updated_at),
        "revision": credential.revision,
    }


def type_view(kind: CredentialType) -> dict[str, Any]:
    """A kind of credential with its fields, and the same as a JSON Schema for forms."""
    return {
        "object": "credential_type",
        "id": kind.key,
        "key": kind.key,
        "name": kind.name,
        "description": kind.description,
        "fields": [one.model_dump(exclude={"litellm"}) for one in kind.fields],
        "schema": {
            "type": "object",
            "properties": {one.name: _property(one) for one in kind.fields},
            "required": [one.name for one in kind.fields if one.required],
            "additionalProperties": False,
        },
    }


def _property(one: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": "string", "title": one.label}
    if one.pattern is not None:
        shown["pattern"] = one.pattern
    if one.secret:
        shown["writeOnly"] = True
    return shown

"""Bodies of the routes of users, keys and logins, and how these look on the wire."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, Field, SecretStr, StrictBool, StrictInt, model_validator

from services.app.identity.tables import ApiKeyRow, UserRow
from services.app.resources import text_of
from services.app.wizards.fields import Name
from shared.clock import iso, now
from shared.security import apikeys

Role = Literal["admin", "operator", "member", "viewer"]
Scope = Literal["read", "write", "inference"]
# One spelling per person: lower case, so that `Ada` and `ada` cannot be two.
UserName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._@+-]{0,99}$")]


class Body(BaseModel):
    model_config = {"extra": "forbid", "str_strip_whitespace": True}


class UserIn(Body):
    name: UserName
    display_name: Name | None = None
    role: Role = "member"


class UserChange(Body):
    """Absent is unchanged. `display_name` null clears it; the others cannot be null."""

    display_name: Name | None = None
    role: Role = "member"
    disabled: StrictBool = False


class KeyIn(Body):
    """`scopes`, `project_id` and the expiry are those of the key that asks, unless narrower ones are given."""

    name: Name
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3)] | None = None
    project_id: UUID | None = None
    expires_at: AwareDatetime | None = None
    expires_in_days: Annotated[StrictInt, Field(ge=1, le=3650)] | None = None
    user_id: UUID | None = None

    @model_validator(mode="after")
    def _one_expiry(self) -> "KeyIn":
        if self.expires_at is not None and self.expires_in_days is not None:
            raise ValueError("must have one of expires_at and expires_in_days, not both")
        return self


class LoginIn(Body):
    key: SecretStr = Field(min_length=1, max_length=512)


def user_view(user: UserRow) -> dict[str, Any]:
    return {
        "object": "user",
        "id": str(user.id),
        "name": user.name,
        "display_name": user.display_name,
        "role": user.role,
        "disabled": user.disabled_at is not None,
        "disabled_at": iso(user.disabled_at),
        "created_at": iso(user.created_at),
        "revision": user.revision,
    }


def key_view(key: ApiKeyRow) -> dict[str, Any]:
    """A key without the key: of that, only the public prefix is shown. Its one possible change is its revocation."""
    return {
        "object": "api_key",
        "id": str(key.id),
        "name": key.name,
        "prefix": apikeys.mask(key.prefix),
        "user_id": str(key.user_id),
        "scopes": sorted(key.scopes),
        "project_id": text_of(key.project_id),
        "state": _state(key),
        "expires_at": iso(key.expires_at),
        "revoked_at": iso(key.revoked_at),
        "last_used_at": iso(key.last_used_at),
        "created_at": iso(key.created_at),
        "revision": 1 if key.revoked_at is None else 2,
    }


def _state(key: ApiKeyRow) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now() else "active"

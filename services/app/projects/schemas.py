"""Bodies of the routes of projects, their policy and quotas with the defaults, and how projects look on the wire."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool, StrictInt

from services.app.projects.tables import MemberRow, ProjectRow
from services.app.resources import text_of
from services.app.wizards.fields import LongText, Name, ShortText
from shared.clock import iso

TIB = 1024**4
Count = Annotated[StrictInt, Field(ge=0, le=1_000_000)]
Bytes = Annotated[StrictInt, Field(ge=0, le=1024 * TIB)]


class Body(BaseModel):
    model_config = {"extra": "forbid", "str_strip_whitespace": True}


class Policy(Body):
    """The scan gate of deployments in the project: whether files must have been scanned, and what stops them."""

    require_scan: StrictBool = True
    block_severity: Literal["critical", "high", "medium", "low"] = "high"


class Quotas(Body):
    """What the project may have at a time. `workers` are replicas of all endpoints, `bytes` those of its models."""

    models: Count = 1_000
    endpoints: Count = 200
    workers: Count = 1_000
    bytes: Bytes = 10 * TIB
    jobs_in_flight: Count = 200


class ProjectIn(Body):
    """`policy` and `quotas` are for admins."""

    name: Name
    description: LongText | None = None
    icon: ShortText | None = None
    policy: Policy | None = None
    quotas: Quotas | None = None


class ProjectChange(Body):
    """Absent is unchanged, null clears: a policy or quotas of null are the defaults again."""

    name: Name = "unchanged"
    description: LongText | None = None
    icon: ShortText | None = None
    policy: Policy | None = None
    quotas: Quotas | None = None


class MemberIn(Body):
    role: Literal["manager", "member", "viewer"] = "member"


def differences(values: Policy | Quotas | None) -> dict[str, Any]:
    """What is stored: only what is not the default, so that a better default reaches every project."""
    return values.model_dump(exclude_defaults=True) if values is not None else {}


def effective_policy(project: ProjectRow) -> Policy:
    return Policy.model_validate(_known(Policy, project.policy))


def effective_quotas(project: ProjectRow) -> Quotas:
    return Quotas.model_validate(_known(Quotas, project.quotas))


def _known(model: type[BaseModel], stored: Mapping[str, Any]) -> dict[str, Any]:
    """What another version has stored and this one does not know is left out."""
    return {name: value for name, value in stored.items() if name in model.model_fields}


def project_view(project: ProjectRow, role: str | None) -> dict[str, Any]:
    """`role` is the caller's own in the project; null for those who see it by their role on the platform."""
    return {
        "object": "project",
        "id": str(project.id),
        "name": project.name,
        "description": project.description,
        "icon": project.icon,
        "policy": effective_policy(project).model_dump(),
        "quotas": effective_quotas(project).model_dump(),
        "role": role,
        "created_by": text_of(project.created_by),
        "created_at": iso(project.created_at),
        "updated_at": iso(project.updated_at),
        "revision": project.revision,
    }


def member_view(member: MemberRow, name: str, display_name: str | None) -> dict[str, Any]:
    return {
        "object": "member",
        "id": str(member.user_id),
        "project_id": str(member.project_id),
        "user_id": str(member.user_id),
        "user": {"id": str(member.user_id), "name": name, "display_name": display_name},
        "role": member.role,
        "created_at": iso(member.created_at),
    }

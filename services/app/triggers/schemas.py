"""Bodies of the routes of triggers, and how these look on the wire: never with a secret."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool, StringConstraints

from services.app.flows.tables import FlowRow
from services.app.triggers.tables import TriggerRow
from services.app.wizards.fields import LongText
from shared.clock import iso

Place = Annotated[str, StringConstraints(pattern=r"^[^.\x00-\x1f]{1,100}(\.[^.\x00-\x1f]{1,100}){0,19}$")]
InputName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]


class TriggerChange(BaseModel):
    """`mapping`: for each input the place of its value in the body, such as `repository.name` or `commits.0.id`."""

    model_config = {"extra": "forbid"}

    description: LongText | None = None
    mapping: Annotated[dict[InputName, Place], Field(max_length=100)] | None = None
    enabled: StrictBool = True


class TriggerIn(TriggerChange):
    scheme: Literal["standard", "github"] = "standard"


def trigger_view(flow: FlowRow, trigger: TriggerRow) -> dict[str, Any]:
    return {
        "object": "trigger",
        "id": str(trigger.id),
        "workflow_id": flow.slug,
        "url": f"/flow/triggers/{trigger.token}",
        "description": trigger.description,
        "scheme": trigger.scheme,
        "mapping": trigger.mapping,
        "enabled": trigger.enabled,
        "owner_id": str(trigger.owner_id),
        "created_at": iso(trigger.created_at),
        "updated_at": iso(trigger.updated_at),
        "revision": trigger.revision,
    }

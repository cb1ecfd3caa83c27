"""Bodies of the routes of schedules, and how these look on the wire."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, StrictBool

from services.app.flows.tables import FlowRow
from services.app.schedules.cron import MAX_LENGTH, next_after, time_zones
from services.app.schedules.tables import ScheduleRow
from shared.clock import iso, now


def _one_space(text: object) -> object:
    return " ".join(text.split()) if isinstance(text, str) else text


def _comes(cron: str) -> str:
    if next_after(cron, "UTC", now()) is None:
        raise ValueError("never comes")
    return cron


def _known(timezone: str) -> str:
    if timezone not in time_zones():
        raise ValueError("is not a time zone, such as Europe/Berlin or UTC")
    return timezone


Cron = Annotated[str, Field(max_length=MAX_LENGTH), AfterValidator(_comes), BeforeValidator(_one_space)]
Timezone = Annotated[str, Field(max_length=100), AfterValidator(_known)]


class ScheduleIn(BaseModel):
    """`misfire`: what becomes of times that were missed: one run for all of them, or none."""

    model_config = {"extra": "forbid"}

    cron: Cron
    timezone: Timezone = "UTC"
    input: dict[str, Any] = Field(default_factory=dict, validation_alias=AliasChoices("input", "inputs"))
    enabled: StrictBool = True
    misfire: Literal["run_once", "skip"] = "run_once"


def schedule_view(flow: FlowRow, schedule: ScheduleRow) -> dict[str, Any]:
    return {
        "object": "schedule",
        "id": str(schedule.id),
        "workflow_id": flow.slug,
        "cron": schedule.cron,
        "timezone": schedule.timezone,
        "input": schedule.inputs,
        "enabled": schedule.enabled,
        "misfire": schedule.misfire,
        "next_at": iso(schedule.next_at),
        "last": schedule.last,
        "owner_id": str(schedule.owner_id),
        "created_at": iso(schedule.created_at),
        "updated_at": iso(schedule.updated_at),
        "revision": schedule.revision,
    }

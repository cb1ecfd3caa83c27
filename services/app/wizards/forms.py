"""Reads a step's body: the control fields, and the wizard's own fields checked by the models of its steps.

Every field may be absent or null at a step; its type is that of its step's model. The patch model of a wizard is made
once, from its steps. Nothing is refused here: the faults of format go on with the body to `checks`, which adds what
only the draft and the database can tell.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, Field, StrictBool, StrictInt, ValidationError, create_model

from services.app.wizards.contract import Wizard
from services.app.wizards.fields import Id
from shared.errors import Fault
from shared.http.bodies import Form
from shared.http.multipart import UploadedFile
from shared.http.problems import PARAM, faults_of

MAX_TOTAL = 20
SERVER_FIELDS = frozenset(
    {"object", "id", "message", "workflow_type", "owner_id", "status", "current_step", "total_steps", "reason", "missing",
     "workflow_steps", "field_steps", "job", "result", "links", "revision", "created_at", "updated_at"}
)  # fmt: skip
INTEGER = re.compile(r"-?[0-9]{1,9}", re.ASCII)
SPELLED = {"true": True, "1": True, "false": False, "0": False}


class Control(BaseModel):
    """What every step's body has besides its fields."""

    workflow_id: Id | None = None
    workflow_total_steps: StrictInt | None = Field(None, ge=1, le=MAX_TOTAL)
    step_number: StrictInt | None = Field(None, ge=1, le=MAX_TOTAL)
    trigger_workflow: StrictBool = False


@dataclass(frozen=True, slots=True)
class StepBody:
    """A step as it was sent, in JSON form. `fields` and `files` have None for what is to be cleared.

    `faults` are those of format, of the control fields first (`is_clear`: none of those); what they name is left out of
    the other members. `unknown` is what no step takes: only the echo of an answer may hold it.
    """

    workflow_id: UUID | None
    total_steps: int | None
    step_number: int
    trigger: bool
    fields: dict[str, Any]
    files: dict[str, UploadedFile | None] = field(default_factory=dict)
    unknown: dict[str, Any] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    is_clear: bool = True


@cache
def patch_model(wizard: Wizard) -> type[BaseModel]:
    """The union of the fields of all steps, each optional and nullable."""
    fields: dict[str, Any] = {}
    for step in wizard.steps:
        for name, info in step.model.model_fields.items() if step.model else ():
            if name not in wizard.files:
                kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
                fields[name] = (kind | None, None)
    config: Any = {"extra": "forbid", "str_strip_whitespace": True}
    return create_model(f"{wizard.type}_patch", __config__=config, **fields)


def read(wizard: Wizard, form: Form) -> StepBody:
    """What a body says, JSON or a form, and what is wrong with its format."""
    patch, sent = patch_model(wizard), form.fields
    control_sent = {name: sent[name] for name in Control.model_fields if sent.get(name) is not None}
    control, faults = _validate(Control, control_sent)
    faults += _control_faults(control_sent, control)
    is_clear = not faults
    fields, more = _validate(patch, {name: value for name, value in sent.items() if name in patch.model_fields})
    files: dict[str, UploadedFile | None] = {name: None for name in wizard.files if name in sent and sent[name] is None}
    files |= {name: file for name, file in form.files.items() if name in wizard.files}
    rest = {name: sent[name] for name in sent if name not in {*Control.model_fields, *patch.model_fields, *files}}
    faults += more
    faults += [server_field(name) for name in rest if name in SERVER_FIELDS]
    faults += [unknown_field(name, "is no file of this wizard") for name in form.files if name not in wizard.files]
    return StepBody(
        UUID(control["workflow_id"]) if control.get("workflow_id") and "workflow_total_steps" not in control_sent else None,
        control.get("workflow_total_steps"),
        control.get("step_number") or 0,
        control.get("trigger_workflow", False),
        fields,
        files,
        {name: value for name, value in rest.items() if name not in SERVER_FIELDS},
        tuple(faults),
        is_clear,
    )  # fmt: skip


def unknown_field(name: str, message: str = "is not known here") -> Fault:
    """Odd names are not repeated."""
    return Fault(name if PARAM.fullmatch(name) else None, "unknown_field", message)


def server_field(name: str) -> Fault:
    return Fault(name, "server_field", "is set by the server only")


def typed(wizard: Wizard, form: Form) -> Form:
    """A form's texts as the values that they spell; an empty text is null."""
    return Form({name: _typed(wizard, name, value) for name, value in form.fields.items()}, form.files)


def _typed(wizard: Wizard, name: str, text: str | None) -> Any:
    if not text:
        return None
    kinds = _kinds(wizard).get(name, frozenset())
    if "boolean" in kinds and text.lower() in SPELLED:
        return SPELLED[text.lower()]
    if "integer" in kinds and INTEGER.fullmatch(text):
        return int(text)
    return text


@cache
def _kinds(wizard: Wizard) -> dict[str, frozenset[str]]:
    """The JSON types that each field may have."""
    found: dict[str, frozenset[str]] = {}
    for model in (Control, patch_model(wizard)):
        for name, schema in model.model_json_schema().get("properties", {}).items():
            found[name] = frozenset(str(one.get("type")) for one in schema.get("anyOf", [schema]))
    return found


def _validate(model: type[BaseModel], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """The sound ones of the values, in JSON form, and the faults of the others. All fields of `model` are optional."""
    try:
        return model.model_validate(values).model_dump(mode="json", exclude_unset=True), []
    except ValidationError as error:
        by_param: dict[str | None, Fault] = {}
        for fault in faults_of(error):  # a union has a fault for each of its branches; the first one says enough
            by_param.setdefault(fault.param, fault)
        wrong = {detail["loc"][0] for detail in error.errors(include_url=False, include_input=False)}
        sound, _ = _validate(model, {name: value for name, value in values.items() if name not in wrong})
        return sound, list(by_param.values())


def _control_faults(sent: Mapping[str, Any], sound: Mapping[str, Any]) -> list[Fault]:
    """What is wrong between the control fields; each for itself has been looked at."""
    faults: list[Fault] = []
    if "step_number" not in sent:
        faults.append(Fault("step_number", "required", "is required"))
    if ("workflow_id" in sent) == ("workflow_total_steps" in sent):
        message = "must be sent without the other: workflow_id to go on, workflow_total_steps to begin"
        faults += [Fault("workflow_id", "one_of", message), Fault("workflow_total_steps", "one_of", message)]
    elif sound.get("step_number", 0) > sound.get("workflow_total_steps", MAX_TOTAL):
        faults.append(Fault("step_number", "out_of_range", "must not be above workflow_total_steps"))
    return faults

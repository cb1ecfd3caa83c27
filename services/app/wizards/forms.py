"""Reads a step's body: the control fields, and the wizard's own fields checked by the models of its steps.

Every field may be absent or null at a step; its type is that of its step's model. The patch model of a wizard is made
once, from its steps.
"""

import re
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
from shared.http.problems import faults_of, problem_of

MAX_TOTAL = 20
SERVER_FIELDS = frozenset(
    {"object", "message", "workflow_type", "owner_id", "status", "current_step", "total_steps", "reason", "missing",
     "workflow_steps", "field_steps", "job", "result", "links", "revision", "created_at", "updated_at"}
)  # fmt: skip
INTEGER = re.compile(r"-?[0-9]{1,9}", re.ASCII)
SPELLED = {"true": True, "1": True, "false": False, "0": False}


class Control(BaseModel):
    """What every step's body has besides its fields."""

    workflow_id: Id | None = None
    workflow_total_steps: StrictInt | None = Field(None, ge=1, le=MAX_TOTAL)
    step_number: StrictInt = Field(ge=1, le=MAX_TOTAL)
    trigger_workflow: StrictBool = False


@dataclass(frozen=True, slots=True)
class StepBody:
    """A step as it was sent, in JSON form. `fields` and `files` have None for what is to be cleared."""

    workflow_id: UUID | None
    total_steps: int | None
    step_number: int
    trigger: bool
    fields: dict[str, Any]
    files: dict[str, UploadedFile | None] = field(default_factory=dict)


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
    """Check the format of a step's body, JSON or a form. Raises 422 with every fault; nothing has been stored then."""
    control_sent: dict[str, Any] = {}
    fields_sent: dict[str, Any] = {}
    files: dict[str, UploadedFile | None] = {}
    faults: list[Fault] = []
    for name, value in form.fields.items():
        if name in Control.model_fields:
            if value is not None:
                control_sent[name] = value
        elif name not in wizard.files:
            fields_sent[name] = value
        elif value is None:
            files[name] = None
        else:
            faults.append(Fault(name, "file_expected", "must be sent as a file"))
    for name, file in form.files.items():
        if name in wizard.files:
            files[name] = file
        else:
            faults.append(Fault(name, "unknown_field", "is no file of this wizard"))
    control = _validate(Control, control_sent, faults)
    patch = _validate(patch_model(wizard), fields_sent, faults)
    if control is not None:
        faults += _control_faults(control)
    if faults or control is None or patch is None:
        raise problem_of([_with_step(wizard, fault) for fault in faults])
    return StepBody(
        UUID(control.workflow_id) if control.workflow_id else None,
        control.workflow_total_steps,
        control.step_number,
        control.trigger_workflow,
        patch.model_dump(mode="json", exclude_unset=True),
        files,
    )


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


def _validate(model: type[BaseModel], values: dict[str, Any], faults: list[Fault]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        by_field: dict[str | None, Fault] = {}
        for fault in faults_of(error):  # a union has a fault for each of its branches; the first one says enough
            by_field.setdefault(fault.param, fault)
        faults.extend(by_field.values())
        return None


def _control_faults(control: Control) -> list[Fault]:
    begins, goes_on = control.workflow_total_steps is not None, control.workflow_id is not None
    if begins == goes_on:
        message = "Send exactly one of workflow_id (to go on) and workflow_total_steps (to begin)."
        return [Fault("workflow_id", "one_of", message), Fault("workflow_total_steps", "one_of", message)]
    if control.workflow_total_steps is not None and control.step_number > control.workflow_total_steps:
        return [Fault("step_number", "out_of_range", "Must not be above workflow_total_steps.")]
    return []


def _with_step(wizard: Wizard, fault: Fault) -> Fault:
    if fault.param in SERVER_FIELDS:
        return Fault(fault.param, "server_field", "is set by the server only", None)
    return Fault(fault.param, fault.code, fault.message, wizard.step_of(fault.param))

"""The one internal form of a flow. Dialects are read into it and written from it; it is stored as JSON by

    flow.model_dump(mode="json", exclude_defaults=True)        and read by        Flow.model_validate(stored)

References inside of its values are canonical, whatever the dialect was: `{{input.x}}`, `{{refs.TASK.output.y}}`, and
`{{item}}`, `{{item.field}}`, `{{index}}` in the body of a loop, and `{{output.x}}` in outputs of the flow (an output
that stands before). Here are the limits of single members; `validation.check` judges the whole.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic import Field as Member

from shared.flows.plain import Json
from shared.flows.task_types import canonical_name, same_name
from stepway.tasks import ValueType

MAX_TASKS = 1000
MAX_FIELDS = 100  # inputs or outputs of a flow
LONGEST = 30 * 24 * 3600.0  # seconds
FOREACH = "flow.foreach"
ALIASES: dict[str, ValueType] = {"string": "text"}

Name = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_-]*\z")]
Text = Annotated[str, StringConstraints(max_length=4000)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FlowInput(Part):
    """What an execution is given. One with a default need not be given; else one that is not required is null."""

    name: Name
    type: ValueType
    spelled: str = ""  # the type as its user wrote it, where that is not `type`
    required: bool = True
    default: Json = None
    description: Text = ""


class FlowOutput(Part):
    """What an execution gives."""

    name: Name
    type: ValueType
    value: Json
    spelled: str = ""
    description: Text = ""


class Retry(Part):
    """How often a task is tried. The wait before try n+1 is delay * multiplier^(n-1), at most `max_delay`, in seconds.

    `jitter`: the fraction of the wait that is random.
    """

    attempts: int = Member(ge=1, le=20)  # the first one counts
    delay: float = Member(1, ge=0, le=86400)
    multiplier: float = Member(2, ge=1, le=10)
    max_delay: float = Member(300, ge=0, le=86400)
    jitter: float = Member(0, ge=0, le=1)


class Task(Part):
    """One step of a flow. `type` is canonical (`web.extract_text`), `spelled` what its user wrote where that differs.

    `inputs`, `condition` and `fallback` may hold references. `fallback`: the outputs when it has failed, with
    `on_error` "default". `outputs`: those that its user lists (`[{name, type, description}]` or `{name: type}`).
    """

    name: Name
    type: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    spelled: Annotated[str, StringConstraints(max_length=128)] = ""
    inputs: dict[str, Json] = {}
    condition: Json = None
    retry: Retry | None = None
    timeout: float | None = Member(None, gt=0, le=LONGEST)  # seconds of one attempt
    on_error: Literal["fail", "continue", "default"] = "fail"
    fallback: dict[str, Json] | None = None
    description: Text = ""
    depends_on: list[str] = Member([], max_length=MAX_TASKS)
    outputs: Json = None

    @property
    def written_type(self) -> str:
        return self.spelled or self.type

    @property
    def is_loop(self) -> bool:
        return same_name(self.type, FOREACH)


class Flow(Part):
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    description: Text = ""
    inputs: list[FlowInput] = Member([], max_length=MAX_FIELDS)
    tasks: list[Task] = Member(min_length=1, max_length=MAX_TASKS)
    outputs: list[FlowOutput] = Member([], max_length=MAX_FIELDS)
    execution: Literal["sequential", "parallel"] = "sequential"

    def task(self, name: str) -> Task | None:
        return next((one for one in self.tasks if one.name == name), None)


# A loop keeps its body as the input `task`, in the words of the dialect refs, less `ref`. `type` is as it was written, and
# `kind` the type's own name where the spelling alone does not tell it.
BODY_MEMBERS = ("condition", "retry", "timeout", "on_error", "fallback", "description")


def loop_body(task: Task) -> Task | None:
    """The task that a `flow.foreach` does for every item, under the loop's own name; None for one without a body.

    Only for flows that were read by a dialect.
    """
    body = task.inputs.get("task")
    if type(body) is not dict or type(body.get("type")) is not str:
        return None
    rest = {name: body[name] for name in BODY_MEMBERS if name in body}
    kind, spelled = type_names(body["type"], body.get("kind"))
    if "retry" in rest:
        rest["retry"] = Retry.model_validate(rest["retry"])
    return Task.model_construct(name=task.name, type=kind, spelled=spelled, inputs=body.get("input", {}), **rest)


def body_value(task: Task) -> dict[str, Any]:
    """The value of the input `task`, from which `loop_body` makes the task again."""
    value: dict[str, Any] = {"type": task.written_type}
    if task.type != canonical_name(task.written_type):
        value["kind"] = task.type
    if task.inputs:
        value["input"] = task.inputs
    for name in BODY_MEMBERS:
        one = getattr(task, name)
        if one != Task.model_fields[name].default:
            value[name] = one.model_dump(mode="json", exclude_defaults=True) if isinstance(one, Retry) else one
    return value


def type_names(written: str, own: str | None = None) -> tuple[str, str]:
    """`type` and `spelled` of a task whose type is written so. `own`: the type's own name, where that is known."""
    kind = own or canonical_name(written)
    return kind, "" if kind == written else written

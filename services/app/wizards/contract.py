"""What a wizard type is: its steps with their models, its variants, its checks, and what its trigger starts.

A type is one module in `types/`, listed in `registry`. The engine (`service`) knows no type.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.identity.caller import Caller
from services.app.wizards.tables import WorkflowRow
from shared.contracts.deployments import DeploySpec
from shared.errors import Fault
from shared.jobs.ledger import JobRequest, JobView

Fields = Mapping[str, Any]  # as sent, in JSON form; absent and null are the same


class StepModel(BaseModel):
    """The fields of one step. Required ones are required at the trigger, never before."""

    model_config = {"extra": "forbid", "str_strip_whitespace": True}


@dataclass(frozen=True, slots=True)
class Option:
    """Where a screen finds the choices of a field: `href` is an RFC 6570 template over the draft's fields and `workflow_id`."""

    href: str
    value: str = "id"
    label: str = "name"
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WizardStep:
    """A step by the user has a model; one by the server (`model` None) shows what was found out."""

    key: str
    title: str
    description: str
    model: type[StepModel] | None = None
    options: dict[str, Option] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Missing:
    """What the trigger still needs: a field that is absent, that no longer fits an earlier choice, or whose object is gone."""

    field: str
    message: str
    code: Literal["missing", "inconsistent", "reference_not_found"] = "missing"


@dataclass(frozen=True, slots=True)
class Variant:
    """The steps (by key, in order) and what the trigger needs while `when` holds; the last variant has no condition.

    A name in `when` is a field, or `X.member` of what the field `X_id` names, which the answer shows as `X`. Of each
    group in `one_of` exactly one field is needed, of each in `any_of` at least one; `dependent` says what a field
    needs beside it. A dotted name is a member of a field.
    """

    when: dict[str, Any]
    steps: tuple[str, ...]
    required: tuple[str, ...]
    one_of: tuple[tuple[str, ...], ...] = ()
    any_of: tuple[tuple[str, ...], ...] = ()
    dependent: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def total_steps(self) -> int:
        return len(self.steps)

    def absent(self, values: Fields) -> list[Missing]:
        """Which of the needed fields have no value, and which have one too many."""

        def given(names: Iterable[str]) -> list[str]:
            return [name for name in names if _value(values, name) is not None]

        both = {names[-1]: names for group in self.one_of if len(names := given(group)) > 1}
        needed = [(name,) for name in self.required]
        needed += [(other,) for name in given(self.dependent) if name not in both for other in self.dependent[name]]
        found = [
            Missing(group[0], f"{' or '.join(map(_label, group))} is required.".capitalize())
            for group in (*needed, *self.one_of, *self.any_of)
            if not given(group)
        ]
        surplus = (Missing(name, f"Send only one of {' and '.join(n)}.", "inconsistent") for name, n in both.items())
        return [*found, *surplus]


def _value(values: Fields, path: str) -> Any:
    value: Any = values
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _label(path: str) -> str:
    return path.rsplit(".", 1)[-1].removesuffix("_id").replace("_", " ")


@dataclass(frozen=True, slots=True)
class Visit:
    """One look at a wizard: for whom, with what, in which transaction.

    `told` is what the wizard's `ask_ahead` has found out for a trigger.
    """

    context: AppContext
    session: AsyncSession
    caller: Caller
    told: object = None


class Wizard:
    """The base of all types. A type sets the class variables and overrides `start`, `finish` and what else it needs."""

    type: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    path: ClassVar[str]
    encoding: ClassVar[Literal["json", "multipart"]] = "json"
    role: ClassVar[str] = "member"
    steps: ClassVar[tuple[WizardStep, ...]]
    files: ClassVar[dict[str, int]] = {}  # file fields of a form, with their limit in bytes
    result_schema: ClassVar[dict[str, Any]] = {}
    asks_ahead: ClassVar[bool] = False  # whether its first trigger asks something outside before: see `ask_ahead`
    has_preview: ClassVar[bool] = False  # whether what the trigger would make can be shown before: see `preview`
    # `X_id` fields and what they name: beside each the answer shows `X: {id, name, icon}`
    references: ClassVar[dict[str, str]] = {}

    variants: ClassVar[tuple[Variant, ...]]

    async def variant(self, visit: Visit, fields: Fields) -> Variant:
        """The variant that the draft is in."""
        return next(one for one in self.variants if all(fields.get(k) == v for k, v in one.when.items()))

    async def computed(self, visit: Visit, fields: Fields) -> dict[str, Any]:
        """What the server works out of the fields, shown beside them."""
        return {}

    async def check(self, visit: Visit, fields: Fields, changed: set[str]) -> list[Fault]:
        """What is wrong with the changed fields beyond their format and references: nothing is stored when there is something.

        When all faults have one code that `shared.error_codes` lists, the refusal has it too.
        """
        return []

    async def check_file(self, visit: Visit, name: str, content: bytes, fields: Fields) -> dict[str, Any]:
        """Raise a problem when an uploaded file cannot be used: nothing is stored then. Else what is kept beside it,
        plainly: `inconsistent` finds it in the fields, under the file's name."""
        return {}

    async def check_names(self, visit: Visit, fields: Fields, changed: set[str]) -> None:
        """Raise `name_taken` when a name that has changed is in use; nothing is stored then. `start` checks again."""

    async def inconsistent(self, visit: Visit, fields: Fields) -> list[Missing]:
        """What no longer fits an earlier choice; shown in `missing`, refused at the trigger."""
        return []

    async def ask_ahead(self, context: AppContext, fields: Fields, files: Mapping[str, bytes]) -> object:
        """What `start` is to find in `visit.told`, asked of others while no transaction is open. Answers within seconds and
        raises nothing. By the time of `start`, fields and files may have changed.
        """
        return None

    async def start(self, visit: Visit, workflow: WorkflowRow) -> JobRequest:
        """The trigger, in its transaction: check again what may have changed, reserve names, make rows, name the job.

        Raises a problem to refuse; the draft is kept.
        """
        raise NotImplementedError

    async def preview(self, visit: Visit, workflow: WorkflowRow) -> DeploySpec:
        """What the trigger would deploy, after the same checks as in `start`; reserves and changes nothing."""
        raise NotImplementedError

    async def finish(self, session: AsyncSession, workflow: WorkflowRow, job: JobView) -> dict[str, Any] | None:
        """The `result` of a workflow whose job has succeeded: `{type, id, name, href}` and the fields of `result_schema`."""
        raise NotImplementedError

    # ---- derived

    def step_of(self, param: str | None, variant: Variant) -> int | None:
        """The number of the step that a field, or a path below it, belongs to; None when the variant has no such step."""
        name = root_of(param)
        for number, key in enumerate(variant.steps, 1):
            model = self.step(key).model
            if model is not None and name in model.model_fields:
                return number
        return None

    def step(self, key: str) -> WizardStep:
        return next(one for one in self.steps if one.key == key)

    @property
    def total_steps(self) -> int:
        return max(one.total_steps for one in self.variants)


def root_of(param: str | None) -> str:
    """The field that a path such as `tags.0.color` begins with."""
    return (param or "").split(".")[0].split("[")[0]


def project_of(fields: Fields) -> UUID | None:
    value = fields.get("project_id")
    return UUID(value) if value else None

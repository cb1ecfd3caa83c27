"""Drives any wizard from its own description, GET /wizards/{type}: no wizard is known here by name.

`run_wizard` sends what is given and starts the job; `WizardRun` is one draft, for those who ask a person step by step.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepway.client import Client
from stepway.problems import ApiError
from stepway.uritemplate import expand

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a field's options: the value that is sent, the label that a person knows it by, and the whole item."""

    value: Any
    label: str
    item: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a step, its schema without `$ref`."""

    name: str
    schema: Schema
    options: dict[str, Any] | None
    is_file: bool

    @property
    def is_reference(self) -> bool:
        """Whether the value is the id of one of the options; else another text may be sent too."""
        return any(one.get("format") == "uuid" for one in branches(self.schema))

    @property
    def title(self) -> str:
        words = str(self.schema.get("title") or self.name.replace("_", " ").capitalize())
        return words.removesuffix(" Id") if self.is_reference else words


@dataclass(frozen=True, slots=True)
class Step:
    """A step that a user takes, with its number in the variant that the draft is in."""

    number: int
    key: str
    title: str
    description: str
    fields: tuple[Field, ...]


class WizardRun:
    """One draft. `fields` are the values known so far, `workflow` the server's last answer (None before the first step).

    `resume` is the id of a workflow to go on with.
    """

    def __init__(self, client: Client, wizard_type: str, *, resume: str | None = None) -> None:
        self.client = client
        self.description: dict[str, Any] = client.get(f"/wizards/{wizard_type}")
        self.workflow: dict[str, Any] | None = None
        self.fields: dict[str, Any] = {}
        self._found: dict[str, dict[str, Any]] = {}
        if resume is not None:
            self.workflow = client.get(f"/workflows/{resume}")
            known = {field.name for step in self.all_steps() for field in step.fields if not field.is_file}
            sent = self.workflow["workflow_steps"]
            self.fields = {name: sent[name] for name in known if sent.get(name) is not None}

    @property
    def is_multipart(self) -> bool:
        return bool(self.description["encoding"] == "multipart")

    @property
    def workflow_id(self) -> str | None:
        return None if self.workflow is None else str(self.workflow["workflow_id"])

    # ---- what the description says

    def variant(self) -> dict[str, Any]:
        """The variant whose conditions the fields meet; the last one has none."""
        variants: list[dict[str, Any]] = self.description["variants"]
        return next((one for one in variants if all(self._value(k) == v for k, v in one["when"].items())), variants[-1])

    def required(self) -> set[str]:
        return set(self.variant()["required"])

    def may_need(self, field: str) -> bool:
        """Whether the trigger asks for the field, or for a member of it, be it beside others."""
        variant = self.variant()
        names = [
            *variant["required"],
            *(name for kind in ("one_of", "any_of") for group in variant[kind] for name in group),
        ]
        return field in (name.partition(".")[0] for name in names)

    def steps(self) -> list[Step]:
        """The steps that the user takes, in the order of the present variant."""
        known = {step["key"]: step for step in self.description["steps"]}
        numbered = [(one["number"], known[one["key"]]) for one in self.variant()["steps"]]
        return [self._step(number, step) for number, step in numbered if step["by"] == "user"]

    def step_of(self, field: str) -> Step | None:
        name = field.partition(".")[0]
        return next((step for step in self.steps() if any(one.name == name for one in step.fields)), None)

    def field(self, name: str) -> Field | None:
        """A field of any step, be it in the present variant or not."""
        return next((one for step in self.all_steps() for one in step.fields if one.name == name), None)

    def all_steps(self) -> list[Step]:
        """The user's steps of all variants."""
        return [self._step(step["number"], step) for step in self.description["steps"] if step["by"] == "user"]

    def _step(self, number: int, step: dict[str, Any]) -> Step:
        schema = step["schema"]
        definitions = schema.get("$defs", {})
        fields = []
        for name, raw in schema.get("properties", {}).items():
            resolved = resolve(raw, definitions)
            fields.append(Field(name, resolved, step["options"].get(name), self.is_multipart and _is_file(resolved)))
        return Step(number, step["key"], step["title"], step["description"], tuple(fields))

    def _value(self, name: str) -> Any:
        """A field, or `X.member` of what the field `X_id` names."""
        reference, dot, member = name.partition(".")
        if not dot:
            return self.fields.get(name)
        return self._referred(f"{reference}_id").get(member)

    def _referred(self, name: str) -> dict[str, Any]:
        field, target = self.field(name), self.fields.get(name)
        if field is None or field.options is None or not target:
            return {}
        collection = field.options["href"].split("?")[0].split("{")[0].rstrip("/")
        path = f"{collection}/{target}"
        if path not in self._found:
            try:
                self._found[path] = self.client.get(path)
            except ApiError:  # the step itself will say what is wrong with the id
                return {}
        return self._found[path]

    # ---- what may be chosen

    def choices(self, field: Field, *, search: str | None = None, limit: int = 200) -> list[Choice]:
        """The options of a field at this point of the draft. `ApiError` `missing_fields` when it is asked for too early."""
        if field.options is None:
            return []
        values = {**self.fields, "workflow_id": self.workflow_id}
        items = self.client.items(expand(field.options["href"], values), limit=limit, search=search)
        value, label = field.options["value"], field.options["label"]
        return [Choice(_member(item, value), str(_member(item, label)), item) for item in items]

    # ---- steps

    def send(self, number: int, fields: Mapping[str, Any], *, trigger: bool = False) -> dict[str, Any]:
        """Takes a step. File fields are paths. The answer is also `workflow`, a refusal's too when it carries one."""
        control: dict[str, Any] = {"step_number": number, "trigger_workflow": trigger}
        if self.workflow is None:
            self.fields.update(fields)  # before the total, which depends on the variant
            control["workflow_total_steps"] = self.variant()["total_steps"]
        else:
            control["workflow_id"] = self.workflow_id
        return self.send_body({**control, **fields})

    def send_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Takes a step whose body is complete."""
        names = {name for name in body if (field := self.field(name)) is not None and field.is_file}
        try:
            answer: dict[str, Any] = self._post({k: v for k, v in body.items() if k not in names}, body, names)
        except ApiError as error:
            if isinstance(error.body.get("workflow"), dict):
                self.workflow = error.body["workflow"]
            raise
        self.workflow = answer
        self.fields.update({name: body[name] for name in body if self.field(name) is not None})
        return answer

    def _post(self, plain: dict[str, Any], body: Mapping[str, Any], names: set[str]) -> Any:
        path = self.description["path"]
        files = {name: _read(Path(str(body[name]))) for name in names if body[name] is not None}
        if not self.is_multipart:
            return self.client.post(path, plain)
        return self.client.post_form(path, {name: _form_text(value) for name, value in plain.items()}, files)


def run_wizard(
    client: Client, wizard_type: str, fields: Mapping[str, Any], *, trigger: bool = True, resume: str | None = None
) -> dict[str, Any]:
    """Takes every step that has given fields, and starts the job. The workflow as the last step answered it.

    `ApiError` when a step or the trigger is refused; the draft is kept, and `body["workflow"]` shows it.
    """
    run = WizardRun(client, wizard_type, resume=resume)
    send_all(run, fields, trigger=trigger)
    assert run.workflow is not None
    return run.workflow


def send_all(run: WizardRun, fields: Mapping[str, Any], *, trigger: bool) -> None:
    """Sends the fields, each at its step, and triggers at the last one."""
    left = dict(fields)
    run.fields.update({name: value for name, value in left.items() if run.field(name) is not None})
    steps = run.steps()
    for step in steps:
        mine = {field.name: left.pop(field.name) for field in step.fields if field.name in left}
        is_last = step is steps[-1]
        if is_last:
            mine |= left  # what no step knows is for the server to refuse
        if mine or is_last:
            run.send(step.number, mine, trigger=trigger and is_last)


def resolve(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema with its `$ref`s put in place; the descriptions of wizards have no recursive ones."""
    if isinstance(schema, list):
        return [resolve(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        rest = {name: value for name, value in schema.items() if name != "$ref"}
        meant = resolve(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
        meant.pop("title", None)  # the definition's, not the field's
        return {**meant, **resolve(rest, definitions)}
    return {name: resolve(value, definitions) for name, value in schema.items() if name != "$defs"}


def kinds(schema: Schema) -> set[str]:
    """The JSON types that a schema admits, null aside."""
    found: set[str] = set()
    for branch in branches(schema):
        kind = branch.get("type", "string" if "enum" in branch else None)
        found |= set(kind) if isinstance(kind, list) else {kind} if kind else set()
    return found - {"null"}


def branches(schema: Schema) -> Iterator[Schema]:
    """The alternatives of a schema, itself when it has none."""
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if not alternatives:
        yield schema
        return
    for one in alternatives:
        yield from branches(one)


def _is_file(schema: Schema) -> bool:
    """A field of a form that holds a file: marked as binary, or without any type."""
    return schema.get("format") == "binary" or not kinds(schema)


def _member(item: Any, path: str) -> Any:
    for name in path.split("."):
        item = item.get(name) if isinstance(item, dict) else None
    return item


def _read(path: Path) -> tuple[str, bytes]:
    return path.name, path.read_bytes()


def _form_text(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

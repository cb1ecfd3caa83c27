"""Asks for a wizard's fields, one after the other, by their schemas and the options that the server offers."""

from typing import Any

from stepway.cli.output import Printer
from stepway.cli.problems import Refused
from stepway.cli.terminal import line
from stepway.cli.values import Unreadable, enum, hint, properties, read
from stepway.client import ApiError
from stepway.wizards import Choice, Field, Schema, Step, WizardRun, kinds

SHOWN = 40
ABSENT = object()
"""Nothing was entered, and nothing is sent."""


class Asker:
    """Asks for one draft's fields. `given` are values that need not be asked for."""

    def __init__(self, out: Printer, run: WizardRun, given: dict[str, Any]) -> None:
        self._out = out
        self._run = run
        self._given = given

    def step(self, step: Step, only: set[str] | None = None) -> dict[str, Any]:
        """The fields of a step as they were entered; those named by `only`, though they were given."""
        entered: dict[str, Any] = {}
        if only is None:
            self._out.say(f"\n{step.number}. {step.title}: {step.description}", "bold")
        for field in step.fields:
            if only is not None and field.name not in only:
                continue
            if only is None and field.name in self._given:
                entered[field.name] = self._given[field.name]
                continue
            value = self._field(field)
            if value is not ABSENT:
                entered[field.name] = value
                self._run.fields[field.name] = value  # the next field's options may depend on it
        return entered

    def _field(self, field: Field) -> Any:
        must = field.name in self._run.required()
        known = self._run.fields.get(field.name, field.schema.get("default"))
        if field.options is not None:
            return self._choose(field, self._choices(field), must, known)
        members = properties(field.schema)
        if members and kinds(field.schema) == {"object"} and self._run.may_need(field.name):
            return self._object(field, members, known or {})
        return self._value(field.title, field.schema, must=must, known=known)

    def _value(self, title: str, schema: Schema, *, must: bool, known: Any) -> Any:
        remark = [hint(schema)] if hint(schema) else []
        remark += [] if must or known is not None else ["empty for none"]
        default = "" if known is None else f" [{known}]"
        question = title + (f" ({'; '.join(remark)})" if remark else "") + default + ": "
        while True:
            text = line(question)
            if not text and (known is not None or not must):
                return known if known is not None else ABSENT
            if not text:
                self._out.say("This is needed.", "yellow")
                continue
            try:
                return read(schema, text)
            except Unreadable as error:
                self._out.say(str(error), "yellow")

    def _object(self, field: Field, members: dict[str, Schema], known: dict[str, Any]) -> Any:
        self._out.say(f"{field.title}:")
        entered = {}
        for name, schema in members.items():
            title = schema.get("title") or name.replace("_", " ").capitalize()
            value = self._value(f"  {title}", schema, must=False, known=known.get(name, schema.get("default")))
            if value is not ABSENT:
                entered[name] = value
        return entered or ABSENT

    # ---- options

    def _choices(self, field: Field, search: str | None = None) -> list[Choice]:
        try:
            return self._run.choices(field, search=search)
        except ApiError as error:
            if error.code != "missing_fields":
                raise
            self._out.say(error.detail, "yellow")
            return []

    def _choose(self, field: Field, choices: list[Choice], must: bool, known: Any) -> Any:
        if not choices:
            if must:
                raise Refused(f"{field.title}: there is nothing to choose from yet. The draft is kept.")
            self._out.say(f"{field.title}: nothing to choose from.", "dim")
            return ABSENT
        if enum(field.schema):
            return self._value(field.title, field.schema, must=must, known=known)
        self._show(field, choices)
        while True:
            remark = "" if must or known is not None else " (empty for none)"
            default = "" if known is None else f" [{_label(choices, known)}]"
            text = line(f"{field.title}, by number or name{remark}{default}: ")
            if not text and (known is not None or not must):
                return known if known is not None else ABSENT
            found = pick(choices, text)
            if len(found) == 1:
                return found[0].value
            if not found and text and not field.is_reference:
                return text
            if not found:
                self._out.say(f"Nothing here is called {text!r}." if text else "This is needed.", "yellow")
            else:
                choices = found
                self._show(field, choices)

    def _show(self, field: Field, choices: list[Choice]) -> None:
        for number, choice in enumerate(choices[:SHOWN], 1):
            self._out.say(f"  {number:>2}  {choice.label}{_remark(choice)}")
        if len(choices) > SHOWN:
            self._out.say(f"  and {len(choices) - SHOWN} more: enter a part of the name to see them.", "dim")


def pick(choices: list[Choice], text: str) -> list[Choice]:
    """What a number, a value, a name or a part of names stands for."""
    if text.isdigit() and 1 <= int(text) <= len(choices):
        return [choices[int(text) - 1]]
    if not text:
        return []
    for test in (
        lambda choice: str(choice.value) == text,
        lambda choice: choice.label == text,
        lambda choice: choice.label.lower() == text.lower(),
        lambda choice: text.lower() in choice.label.lower(),
    ):
        found = [choice for choice in choices if test(choice)]
        if found:
            return found
    return []


def _label(choices: list[Choice], value: Any) -> str:
    return next((choice.label for choice in choices if choice.value == value), str(value))


def _remark(choice: Choice) -> str:
    """What helps to choose: whether and why it fits, or a description."""
    if "fits" in choice.item:
        verdict = "fits" if choice.item["fits"] else "does not fit"
        return f"  ({verdict}: {' '.join(choice.item.get('reasons', []))})"
    description = choice.item.get("description")
    return f"  ({description})" if isinstance(description, str) and description else ""

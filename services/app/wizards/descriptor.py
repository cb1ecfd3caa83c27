"""GET /wizards: the screens of each wizard, described so that a frontend or a bot needs no code of its own for them."""

from functools import cache
from typing import Any

from services.app.wizards.contract import Variant, Wizard, WizardStep


@cache
def describe(wizard: Wizard) -> dict[str, Any]:
    return {
        "object": "wizard",
        "id": wizard.type,
        "type": wizard.type,
        "title": wizard.title,
        "description": wizard.description,
        "method": "POST",
        "path": wizard.path,
        "encoding": wizard.encoding,
        "role": wizard.role,
        "total_steps": wizard.total_steps,
        "steps": [_step(number, step) for number, step in enumerate(wizard.steps, 1)],
        "variants": [
            {
                "when": one.when,
                "total_steps": one.total_steps,
                "steps": [{"number": number, "key": key} for number, key in enumerate(one.steps, 1)],
                **_needs(one),
            }
            for one in wizard.variants
        ],
        "trigger": _needs(wizard.variants[-1]),
        "has_preview": wizard.has_preview,
        "result_schema": wizard.result_schema,
    }


def _needs(variant: Variant) -> dict[str, Any]:
    """What the trigger needs: every field of `required`, exactly one of each group in `one_of`, at least one of each in
    `any_of`, and beside a field of `dependent_required` those that it names. A dotted name is a member of a field."""
    return {
        "required": list(variant.required),
        "one_of": [list(group) for group in variant.one_of],
        "any_of": [list(group) for group in variant.any_of],
        "dependent_required": {name: list(others) for name, others in variant.dependent.items()},
    }


def _step(number: int, step: WizardStep) -> dict[str, Any]:
    options = {
        name: {"href": one.href, "value": one.value, "label": one.label, "depends_on": list(one.depends_on)}
        for name, one in step.options.items()
    }
    return {
        "number": number,
        "key": step.key,
        "title": step.title,
        "description": step.description,
        "by": "server" if step.model is None else "user",
        "schema": _schema(step),
        "options": options,
    }


def _schema(step: WizardStep) -> dict[str, Any]:
    if step.model is None:
        return {"type": "object", "properties": {}}
    schema: dict[str, Any] = plain_nulls(step.model.model_json_schema())
    return schema


def plain_nulls(schema: Any) -> Any:
    """`anyOf: [X, null]` as `X` with `type: [x, "null"]`, which form renderers show as one field."""
    if isinstance(schema, list):
        return [plain_nulls(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: plain_nulls(value) for name, value in schema.items()}
    choices = schema.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        others = [one for one in choices if one != {"type": "null"}]
        if len(others) == 1 and isinstance(others[0].get("type"), str):
            rest = {name: value for name, value in schema.items() if name != "anyOf"}
            return {**others[0], **rest, "type": [others[0]["type"], "null"]}
    return schema

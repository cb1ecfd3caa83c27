"""What a task is given and gives, against its specification: checked when it runs, for references may stand for anything."""

from collections.abc import Mapping
from typing import Any

from services.flow.values import LARGEST, is_spilled
from shared.flows import plain
from stepway.tasks import Field, TaskError, TaskType

_WORDS = {
    "text": "a text", "number": "a number", "boolean": "true or false", "file": "a file", "object": "an object",
    "list": "a list", "any": "JSON",
}  # fmt: skip


def checked_inputs(kind: TaskType, given: Mapping[str, Any]) -> dict[str, Any]:
    """With defaults filled in. Raises `TaskError` (`input_missing`, `input_wrong`) that names the input."""
    inputs = {}
    for field in kind.inputs:
        value = given.get(field.name)
        if value is None:
            value = field.default
            if field.required and value is None:
                raise TaskError("input_missing", f"The input {field.name} has no value.")
        elif not _is_of(field, value):
            words = f"one of {', '.join(map(str, field.choices))}" if field.choices else _WORDS[field.type]
            raise TaskError("input_wrong", f"The input {field.name} must be {words}.")
        inputs[field.name] = value
    for group in kind.one_of:
        if sum(inputs[name] is not None for name in group) != 1:
            raise TaskError("input_missing", f"Exactly one of the inputs {', '.join(group)} must have a value.")
    return inputs


def checked_outputs(kind: TaskType, given: Mapping[str, Any]) -> dict[str, Any]:
    """All that are declared, null where there is none. Raises `TaskError` (`output_wrong`): a fault of the type itself."""
    wrong = {name for name in given if kind.output(name) is None}
    for field in kind.outputs:
        value = given.get(field.name)
        if value is not None and (not _is_of(field, value) or plain.problem(value, max_depth=64, max_bytes=LARGEST)):
            wrong.add(field.name)
    if wrong:
        raise TaskError("output_wrong", f"{kind.name} gave wrong outputs: {', '.join(sorted(wrong))}.")
    return {field.name: given.get(field.name) for field in kind.outputs}


def _is_of(field: Field, value: Any) -> bool:
    if field.choices and not any(plain.same(value, one) for one in field.choices):
        return False
    return plain.is_of(value, field.type) or is_spilled(value)

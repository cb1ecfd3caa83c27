"""A flow to the body that describes it in a dialect. Members with their default values are left out."""

from typing import Any

from pydantic import BaseModel

from shared.flows.definition import Flow, FlowInput, FlowOutput, Retry, Task, loop_body
from shared.flows.dialects.words import INPUT, OUTPUT, Words
from shared.flows.faults import Faults
from shared.flows.plain import Json
from shared.flows.references import CANONICAL, translate

WITH_REFERENCES = ("inputs", "condition", "fallback", "value")


def write_flow(flow: Flow, words: Words) -> dict[str, Any]:
    parts = {
        "inputs": [_field(one, INPUT, words) for one in flow.inputs],
        "tasks": [_task(one, words.task, words) for one in flow.tasks],
        "outputs": [_field(one, OUTPUT, words) for one in flow.outputs],
    }
    body = {}
    for word, name in words.head.items():
        value = parts.get(name, getattr(flow, name))
        if name in ("name", "tasks") or value != Flow.model_fields[name].default:
            body[word] = value
    return body


def _field(one: FlowInput | FlowOutput, members: tuple[str, ...], words: Words) -> dict[str, Any]:
    return {**_given(one, {name: name for name in members}, words), "type": one.spelled or one.type}


def _task(task: Task, members: Any, words: Words) -> dict[str, Any]:
    body = {**_given(task, members, words)}
    body["type"] = task.written_type
    if task.is_loop and (inner := loop_body(task)) is not None:
        body[words.input]["task"] = _task(inner, words.body, words)
    return body


def _given(one: BaseModel, members: Any, words: Words) -> dict[str, Any]:
    """The members that have another value than their default."""
    body: dict[str, Any] = {}
    for word, name in members.items():
        value, field = getattr(one, name), type(one).model_fields[name]
        if not field.is_required() and value == field.default and type(value) is type(field.default):
            continue
        body[word] = _written(value, words) if name in WITH_REFERENCES else value
        if isinstance(value, Retry):
            body[word] = value.model_dump(mode="json", exclude_defaults=True)
    return body


def _written(value: Json, words: Words) -> Json:
    return translate(value, CANONICAL, words.notation, "", Faults())

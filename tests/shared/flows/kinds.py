"""Types of tasks for these tests, declared as the shipped ones are; and a small flow that uses them."""

import copy
from typing import Any

from stepway.tasks import Field, TaskType

GONE = object()


def _type(name: str, inputs: list[Field], outputs: list[Field], one_of: tuple[tuple[str, ...], ...] = ()) -> TaskType:
    return TaskType(name, name, "", tuple(inputs), tuple(outputs), one_of=one_of)


def _maybe(name: str, kind: Any, default: Any = None, choices: tuple[Any, ...] = ()) -> Field:
    return Field(name, kind, required=False, default=default, choices=choices)


TYPES = {
    one.name: one
    for one in (
        _type(
            "web.download",
            [Field("url", "text", "The page's address."), _maybe("headers", "object")],
            [
                Field("html", "text"),
                Field("html_content", "text"),
                Field("status", "number"),
                Field("final_url", "text"),
            ],
        ),
        _type(
            "web.extract_text",
            [_maybe("html", "text"), _maybe("html_content", "text")],
            [Field("text", "text")],
            one_of=(("html", "html_content"),),
        ),
        _type(
            "openai.text.summarize",
            [Field("text", "text"), Field("model", "text"), _maybe("parameters", "object")],
            [Field("summary", "text"), Field("usage", "object")],
        ),
        _type(
            "openai.audio.tts",
            [Field("text", "text"), _maybe("voice", "text", "alloy", ("alloy", "echo"))],
            [Field("audio", "file")],
        ),
        _type("openai.audio.transcription", [Field("file", "file")], [Field("text", "text")]),
        _type("text.size", [Field("text", "text")], [Field("characters", "number"), Field("empty", "boolean")]),
        _type(
            "text.truncate",
            [Field("text", "text"), Field("length", "number"), _maybe("words", "boolean", True)],
            [Field("text", "text")],
        ),
        _type("json.transform", [Field("value", "any"), Field("expression", "text")], [Field("result", "any")]),
        _type(
            "flow.foreach",
            [Field("items", "list"), Field("task", "object"), _maybe("concurrency", "number", 10)],
            [Field("results", "list"), Field("count", "number")],
        ),
    )
}

BASE: dict[str, Any] = {
    "name": "Sizes of pages",
    "input": [
        {"name": "url", "type": "text"},
        {"name": "most", "type": "number", "default": 5},
        {"name": "sound", "type": "file", "required": False},
        {"name": "settings", "type": "object", "required": False},
    ],
    "tasks": [
        {"ref": "download", "type": "web.download", "input": {"url": "{{input.url}}"}},
        {"ref": "extract", "type": "web.extract_text", "input": {"html": "{{refs.download.output.html}}"}},
        {"ref": "size", "type": "text.size", "input": {"text": "{{refs.extract.output.text}}"}},
        {
            "ref": "loop",
            "type": "flow.foreach",
            "input": {
                "items": ["a", "b"],
                "task": {"type": "text.truncate", "input": {"text": "{{item}}", "length": "{{index}}"}},
            },
        },
    ],
    "output": [{"name": "text", "type": "text", "value": "{{refs.extract.output.text}}"}],
}

TASKS_BASE: dict[str, Any] = {
    "title": "Speech",
    "inputs": [{"name": "text", "type": "text"}],
    "tasks": [
        {"name": "speak", "type": "openai.audio.tts", "inputs": {"text": "{{inputs.text}}", "voice": "alloy"}},
        {
            "name": "hear",
            "type": "openai.audio.transcription",
            "inputs": [{"name": "file", "value": "{{tasks.speak.outputs.audio}}"}],
        },
    ],
    "outputs": [{"name": "audio", "type": "file", "value": "{{tasks.speak.outputs.audio}}"}],
}


def edited(edits: dict[str, Any], base: dict[str, Any] = BASE) -> dict[str, Any]:
    """`base` with other values at the paths, which are names and indexes with dots between; GONE removes."""
    body = copy.deepcopy(base)
    for path, value in edits.items():
        *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        at: Any = body
        for step in steps:
            at = at[step]
        if value is GONE:
            del at[last]
        elif isinstance(at, list) and last == len(at):
            at.append(value)
        else:
            at[last] = value
    return body

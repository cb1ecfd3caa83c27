"""The page of all types of tasks, made from their specifications: `python -m services.flow.tasks.document` prints it."""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from services.flow.tasks.registry import TASK_TYPES
from stepway.tasks import Field, TaskType

_HEAD = """# Task types of flows

Made from the specifications by `python -m services.flow.tasks.document`; do not edit.

Names are spelled as you like: `Web.ExtractText` is `web.extract_text`. An input that is not required may be left out. Types
of values: text, number, boolean, object, list, any (every JSON value), and file: a stored file, as
`{"artifact_id", "name", "media_type", "size", "sha256"}`. Packages may add types by the entry point group `stepway.tasks`.
"""


def document(types: Iterable[TaskType] = TASK_TYPES) -> str:
    """Markdown: one section per type, with tables of its inputs and outputs."""
    types = list(types)
    contents = "\n".join(f"- [{one.name}](#{one.name.replace('.', '')}): {_plain(one.title)}" for one in types)
    return "\n".join([_HEAD, contents, *(part for one in types for part in _section(one))]) + "\n"


def _section(one: TaskType) -> Iterator[str]:
    yield f"\n## {one.name}\n\n{_plain(one.description)}\n"
    for group in one.one_of:
        yield f"Exactly one of {', '.join(f'`{name}`' for name in group)} is given.\n"
    if one.run is not None:
        tries = f"; {one.attempts} attempts in all, where a fault may pass" if one.attempts > 1 else ""
        yield f"An attempt takes {one.timeout:g} s at most{tries}, unless the flow says otherwise.\n"
    yield "| input | type | required | default | description |\n|---|---|---|---|---|"
    for field in one.inputs:
        default = "" if field.default is None else _code(field.default)
        yield f"| `{field.name}` | {field.type} | {_required(one, field)} | {default} | {_described(field)} |"
    if one.outputs:
        yield "\n| output | type | description |\n|---|---|---|"
    for field in one.outputs:
        yield f"| `{field.name}` | {field.type} | {_described(field)} |"


def _required(one: TaskType, field: Field) -> str:
    if any(field.name in group for group in one.one_of):
        return "one of"
    return "yes" if field.required else "no"


def _described(field: Field) -> str:
    parts = [_plain(field.description)]
    if field.choices:
        parts.append(f"One of {', '.join(_code(choice) for choice in field.choices)}.")
    if field.example is not None:
        parts.append(f"Example: {_code(field.example)}.")
    if field.secret:
        parts.append("Never shown.")
    return " ".join(part for part in parts if part)


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{_plain(shown)}`"


if __name__ == "__main__":
    sys.stdout.write(document())

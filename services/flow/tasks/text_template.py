"""`text.template`: a text with values filled in. There is nothing in it but names: no conditions, no loops."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from stepway.tasks import Context, Field, TaskError, TaskType

MAX_RESULT = 4 * 1024**2  # characters


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    parts, size = [], 0
    for part in _rendered(inputs["template"], inputs.get("values") or {}):
        parts.append(part)
        size += len(part)
        if size > MAX_RESULT:
            raise TaskError("too_large", f"The text is longer than {MAX_RESULT} characters.")
    return {"text": "".join(parts)}


def _rendered(template: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Goes through the template once; what is filled in is not looked at again."""
    at = 0
    while (start := template.find("{{", at)) >= 0:
        if start > 0 and template[start - 1] == "\\":
            yield template[at : start - 1] + "{{"
            at = start + 2
            continue
        end = template.find("}}", start)
        name = template[start + 2 : end].strip() if end >= 0 else ""
        if not name:
            raise TaskError(
                "bad_template", f"At character {start} there is a `{{{{` without a name and `}}}}` after it."
            )
        yield template[at:start]
        yield _shown(_found(name, values))
        at = end + 2
    yield template[at:]


def _found(path: str, values: Any) -> Any:
    """Walks plain objects and lists, by names and numbers between dots."""
    for step in path.split("."):
        if isinstance(values, dict) and step in values:
            values = values[step]
        elif isinstance(values, list) and step.isascii() and step.isdecimal() and int(step[:9]) < len(values):
            values = values[int(step[:9])]
        else:
            raise TaskError(
                "missing_value", f"There is no value for {{{{{path[:100]}}}}}: `values` has no {step[:100]!r} there."
            )
    return values


def _shown(value: Any) -> str:
    """As references within a text are shown: a text as it is, null as nothing, all else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


TASK_TYPE = TaskType(
    name="text.template",
    title="Fill in a template",
    description=(
        "Puts values where a template has their names in double braces; `{{a.b}}` and `{{list.0}}` go into objects and "
        "lists. In a flow's own definition write `\\{{name}}`: other double braces are references of the flow."
    ),
    inputs=(
        Field("template", "text", "The text with names.", example="Dear \\{{name}}, …"),
        Field("values", "object", "What the names stand for.", required=False, example={"name": "Ada"}),
    ),
    outputs=(Field("text", "text", "The text with the values.", example="Dear Ada, …"),),
    run=run,
)

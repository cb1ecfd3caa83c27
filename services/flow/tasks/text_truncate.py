"""`text.truncate`: the beginning of a text."""

import unicodedata
from collections.abc import Mapping
from typing import Any

from stepway.tasks import Context, Field, TaskError, TaskType


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    text, ending = inputs["text"], inputs.get("ellipsis")
    ending = "…" if ending is None else ending
    limit = inputs["max_characters"]
    if not 0 <= limit < 2**53 or limit != int(limit):
        raise TaskError("bad_limit", "`max_characters` is a whole number, 0 or more.")
    if len(text) <= limit:
        return {"text": text, "truncated": False}
    ending = ending[: int(limit)]
    return {"text": text[: _cut(text, int(limit) - len(ending))] + ending, "truncated": True}


def _cut(text: str, at: int) -> int:
    """At most `at`, and never between a letter and its accents."""
    while 0 < at < len(text) and (unicodedata.combining(text[at]) or text[at] in "\u200d\ufe0f"):
        at -= 1
    return at


TASK_TYPE = TaskType(
    name="text.truncate",
    title="Truncate a text",
    description="Keeps the beginning of a text, so that it is not longer than a limit.",
    inputs=(
        Field("text", "text", "What to truncate.", example="Hello, world!"),
        Field("max_characters", "number", "How long the result is at most, with the ellipsis.", example=8),
        Field("ellipsis", "text", "What ends a text that was cut.", required=False, default="…"),
    ),
    outputs=(
        Field("text", "text", "The text, or its beginning.", example="Hello, …"),
        Field("truncated", "boolean", "Whether something was cut."),
    ),
    run=run,
)

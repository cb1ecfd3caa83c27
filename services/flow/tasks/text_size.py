"""`text.size`: how long a text is."""

from collections.abc import Mapping
from typing import Any

from stepway.tasks import Context, Field, TaskType


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    text = inputs["text"]
    return {
        "characters": len(text),
        "bytes": len(text.encode("utf-8", "replace")),
        "words": len(text.split()),
        "lines": len(text.splitlines()),
    }


TASK_TYPE = TaskType(
    name="text.size",
    title="Measure a text",
    description="Counts the characters, words and lines of a text.",
    inputs=(Field("text", "text", "What to measure.", example="Hello, world!"),),
    outputs=(
        Field("characters", "number", "Unicode characters.", example=13),
        Field("bytes", "number", "Bytes in UTF-8.", example=13),
        Field("words", "number", "What spaces separate.", example=2),
        Field("lines", "number", "Lines; an empty text has none.", example=1),
    ),
    run=run,
)

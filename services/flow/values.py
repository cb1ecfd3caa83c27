"""Values that are too big for a job's history: kept as artifacts, and read again where a task needs them.

What a task returns is at most `MOST` bytes of JSON; the largest outputs of one that returns more become artifacts. Such a value
is that of a file with `"spilled"`: what is inside, `text` or `json`.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic_core import from_json, to_json

from stepway.tasks import Context, TaskError

MOST = 48 * 1024  # bytes of all outputs of one task
LARGEST = 16 << 20  # bytes of one value
MARK = "spilled"


async def spill(outputs: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """The outputs, small enough to be remembered. Raises `TaskError` (`too_large`)."""
    kept = dict(outputs)
    sizes = {name: len(to_json(value)) for name, value in kept.items()}
    while sum(sizes.values()) > MOST:
        name = max(sizes, key=lambda one: sizes[one])
        if is_spilled(kept[name]):
            raise TaskError(
                "too_large", f"What the task returns is too large, even with its values kept as files: {MOST} bytes."
            )
        kept[name] = await _keep(name, kept[name], context)
        sizes[name] = len(to_json(kept[name]))
    return kept


async def _keep(name: str, value: Any, context: Context) -> dict[str, Any]:
    is_text = isinstance(value, str)
    content = value.encode() if is_text else to_json(value)
    if len(content) > LARGEST:
        raise TaskError("too_large", f"The output {name} is larger than {LARGEST >> 20} MiB.")
    file = (f"{name}.txt", "text/plain; charset=utf-8") if is_text else (f"{name}.json", "application/json")
    return {**await context.save(*file, content), MARK: "text" if is_text else "json"}


def is_spilled(value: Any) -> bool:
    return isinstance(value, dict) and value.get(MARK) in ("text", "json") and "artifact_id" in value


async def restored(value: Any, read: Callable[[Mapping[str, Any], int], Awaitable[bytes]]) -> Any:
    """The value with all that was spilled in it read again."""
    if is_spilled(value):
        content = await read(value, LARGEST)
        return content.decode() if value[MARK] == "text" else from_json(content)
    if isinstance(value, dict):
        return {name: await restored(one, read) for name, one in value.items()}
    if isinstance(value, list):
        return [await restored(one, read) for one in value]
    return value

"""JSON files of a model, within bounds, and values of the types that one hopes for."""

import json
from pathlib import Path
from typing import Any

MAX_JSON = 8 * 1024 * 1024  # bytes
_MAX_INTEGER = 2**53


def load_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The object in a file; empty when it is too large, too deep, or no object."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError:
        return {}
    return parse_json(data) if len(data) <= limit else {}


def parse_json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def integer(value: object, *, top: int = _MAX_INTEGER) -> int | None:
    """A positive integer that makes sense, else None."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= top:
        return None
    return value


def text(value: object, limit: int = 200) -> str | None:
    """Printable text on one line, cut at `limit` characters, else None."""
    if not isinstance(value, str):
        return None
    cleaned = "".join(letter if letter.isprintable() else " " for letter in value[: limit * 4])
    return " ".join(cleaned.split())[:limit] or None


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def first_integer(source: dict[str, Any], *names: str) -> int | None:
    return next((found for name in names if (found := integer(source.get(name))) is not None), None)

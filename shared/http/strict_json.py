"""JSON text to Python values, refusing all that two parsers could read differently. `shared.http.bodies` feeds it."""

import json
import math
import re
from typing import Any, Never

from shared.errors import Problem

MAX_DEPTH = 20
MAX_INTEGER = 2**63  # the largest magnitude that is accepted
SHOWN_KEY = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def loads(raw: bytes, max_depth: int = MAX_DEPTH) -> Any:
    """The value that `raw` spells. Problem `invalid_json` (400), whose detail never repeats a value."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"The body is not UTF-8: byte {error.start} cannot be read.") from None
    if not text or text.isspace():
        raise invalid("The body is empty; send a JSON value.")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise invalid(f"Not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    # Most bodies are shown to be harmless by these two counts alone; the others are walked.
    if raw.count(b"{") + raw.count(b"[") > max_depth or b"\\u" in raw:
        _inspect(value, max_depth)
    return value


def invalid(detail: str) -> Problem:
    return Problem("invalid_json", detail)


def check_text(text: str) -> str | None:
    """What is wrong with a text that came from outside, or None: databases take neither NUL nor a lone surrogate."""
    if "\x00" in text:
        return "a NUL character"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "a lone surrogate"
    return None


def _inspect(value: Any, max_depth: int) -> None:
    """Walks by level rather than by recursion, so that depth costs no stack."""
    level: list[Any] = [value]
    for _ in range(max_depth):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if fault := check_text(item):
                    raise invalid(f"The body holds {fault}.")
            elif isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    # The strings and numbers inside the deepest container allowed are one level further down.
    if any(isinstance(item, dict | list) for item in level):
        raise _too_deep(max_depth)
    for item in level:
        if isinstance(item, str) and (fault := check_text(item)):
            raise invalid(f"The body holds {fault}.")


def _too_deep(max_depth: int) -> Problem:
    return invalid(f"The body is nested deeper than {max_depth} levels.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        shown = f" {twice!r}" if SHOWN_KEY.fullmatch(twice) else ""
        raise invalid(f"The key{shown} stands twice in one object.")
    return members


def _integer(digits: str) -> int:
    # The length is looked at first: turning a million digits into a number takes time.
    if len(digits) > 20 or abs(number := int(digits)) > MAX_INTEGER:
        raise invalid("An integer is out of range (64 bits).")
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise invalid("A number is out of range.")
    return number


def _constant(name: str) -> Never:
    raise invalid(f"{name} is not JSON.")


# Its scanner stays in C; the hooks for numbers cost less than a look at the bytes beforehand would.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant)

"""Reads JSON of clients: what two readers could understand differently, or what cannot be stored, is refused."""

import json
import math
from typing import Any

from pydantic_core import from_json


class InvalidJson(ValueError):
    """The text is not JSON, or is JSON of a kind that is not taken; the message says where or what."""


def loads(text: bytes | str) -> Any:
    """The value of a JSON text in UTF-8.

    Raises InvalidJson for what is no JSON, for NaN and infinite numbers, whole numbers of over 4,300 digits, half surrogates,
    a name given twice in one object, and for nesting of about 200 levels.
    """
    try:
        from_json(text, allow_inf_nan=False)  # fast, and never recurses far: what follows is known to be sound and flat
        return _DECODER.decode(text if isinstance(text, str) else text.decode())
    except InvalidJson:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidJson(str(error) or "nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidJson(f"{twice[:100]!r} is given twice in one object")
    return made


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidJson(f"the number {text[:40]} is out of range")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float)

"""Plain JSON: what may stand in a definition or be a value of an execution, and when two values are the same.

Values come from bodies, files and tasks. All walks are bounded: in depth, and in what is looked at.
"""

import math
from typing import Any, Literal

from shared.flows.faults import Fault, member
from stepway.tasks import ValueType

Json = (
    Any  # None, bool, int, float, str, list[Json], dict[str, Json]; checked by `problem`, as recursive types are slow
)

MAX_DEPTH = 20
MAX_BYTES = 1 << 20
MAX_INTEGER_BITS = 1024
FILE_HINT = ": an object with `artifact_id`, or a reference to a file"
SCALARS = (str, bool, int, float, type(None))


def problem(
    value: Json, path: str = "", *, max_depth: int = MAX_DEPTH, max_bytes: int = MAX_BYTES, storable: bool = True
) -> Fault | None:
    """The first thing by which `value` is not JSON that we take, or None. Walks by level, so depth costs no stack.

    `max_bytes`: of its JSON, by and large. `storable`: its texts must be such that the database takes them.
    """
    look = _look(value, max_depth, max_bytes, storable)
    if look == "large":
        return Fault(path, "too_long", f"This is larger than {max_bytes >> 20} MiB; send less, or use files.")
    return None if look == "sound" else _search(value, path, max_depth, storable)


def _look(value: Json, max_depth: int, max_bytes: int, storable: bool) -> Literal["sound", "large", "wrong"]:
    """What there is to find. Several times faster than a search that knows where it is."""
    level, size = [value], 0
    for depth in range(max_depth + 1):
        below: list[Json] = []
        for item in level:
            kind = type(item)
            if kind is dict or kind is list:
                if depth == max_depth:
                    return "wrong"
                size += 2 * len(item) + 2
                if size > max_bytes:
                    return "large"
                below.extend(item)
                if kind is dict:
                    if not all(type(name) is str for name in item):
                        return "wrong"
                    below.extend(item.values())
            elif kind is str:
                size += len(item)
                if storable and _text_problem(item) is not None:
                    return "wrong"
            elif _scalar_problem(item, storable) is not None:
                return "wrong"
        if size > max_bytes:
            return "large"
        if not below:
            break
        level = below
    return "sound"


def _search(value: Json, path: str, max_depth: int, storable: bool) -> Fault | None:
    """The first fault and its place, in a value of which `_look` has said that it is wrong before it is large."""
    level: list[tuple[Json, _Place]] = [(value, None)]
    for depth in range(max_depth + 1):
        below: list[tuple[Json, _Place]] = []
        for item, place in level:
            if type(item) is list or type(item) is dict:
                if depth == max_depth:
                    return _fault(
                        path, place, "too_deep", f"This is nested deeper than {max_depth} levels; flatten it."
                    )
                if type(item) is dict and (wrong := _names_problem(item, storable)) is not None:
                    return _fault(path, place, *wrong)
                members = item.items() if type(item) is dict else enumerate(item)
                below.extend((one, (place, key)) for key, one in members)
            elif (wrong := _scalar_problem(item, storable)) is not None:
                return _fault(path, place, *wrong)
        level = below
    return None


_Place = (
    tuple[Any, str | int] | None
)  # of what holds it, and the name or index there; made into a path only for a fault


def _fault(path: str, place: _Place, code: str, message: str) -> Fault:
    keys = []
    while place is not None:
        place, key = place
        keys.append(key)
    for key in reversed(keys):
        path = f"{path}[{key}]" if isinstance(key, int) else member(path, key)
    return Fault(path, code, message)


def _names_problem(item: dict[Any, Json], storable: bool) -> tuple[str, str] | None:
    for name in item:
        if type(name) is not str:
            return "wrong_type", "The names of members must be texts."
        if wrong := _scalar_problem(name, storable):
            return wrong
    return None


def _scalar_problem(item: Json, storable: bool) -> tuple[str, str] | None:
    if type(item) not in SCALARS:
        return "wrong_type", "This is no JSON value; use texts, numbers, true, false, null, lists and objects."
    if type(item) is float and not math.isfinite(item):
        return "not_allowed", "A number must be finite."
    if type(item) is int and item.bit_length() > MAX_INTEGER_BITS:
        return "not_allowed", "This number is out of range; write it as a text."
    if storable and type(item) is str:
        return _text_problem(item)
    return None


def _text_problem(text: str) -> tuple[str, str] | None:
    if "\x00" in text:
        return "not_allowed", "A text must not hold a NUL character."
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "not_allowed", "A text must not hold a lone surrogate."
    return None


def type_of(value: Json) -> ValueType | None:
    """The type of a plain value; None for null, and for what is not JSON. An object may be a file as well."""
    kind = type(value)
    if kind is str:
        return "text"
    if kind is bool:
        return "boolean"
    if kind is int or kind is float:
        return "number"
    if kind is list:
        return "list"
    return "object" if kind is dict else None


def is_of(value: Json, wanted: ValueType) -> bool:
    """Whether a value that is there (not null) is of the type `wanted`."""
    if wanted == "any":
        return True
    if wanted == "file":
        return type(value) is dict and type(value.get("artifact_id")) is str
    return type_of(value) == wanted


def same(left: Json, right: Json, depth: int = MAX_DEPTH * 4) -> bool:
    """Whether two values are equal as JSON: true is not 1, and 1 is 1.0. Raises `RecursionError` beyond `depth` levels."""
    if depth == 0:
        raise RecursionError
    if type(left) is dict and type(right) is dict:
        return left.keys() == right.keys() and all(same(left[key], right[key], depth - 1) for key in left)
    if type(left) is list and type(right) is list:
        return len(left) == len(right) and all(
            same(one, other, depth - 1) for one, other in zip(left, right, strict=True)
        )
    return type_of(left) == type_of(right) and bool(left == right)

"""Numpy's .npy: a header, then numbers, or a pickle where the type has objects."""

import ast
import math

from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "numpy_array"
KINDS = frozenset((Kind.NUMPY,))

_MAX_HEADER = 1 << 20


def look(item: Item, findings: Findings) -> None:
    version = item.at(6, 2)
    width = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(version)
    if width is None:
        raise Unreadable("its version is not known")
    size = int.from_bytes(item.at(8, width), "little")
    start = 8 + width + size
    if size > _MAX_HEADER or start > item.size:
        raise Unreadable("its header is too long")
    try:
        header = ast.literal_eval(item.at(8 + width, size).decode("latin-1").strip())
        described, shape = header["descr"], header["shape"]
        items = math.prod(int(length) for length in shape)
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise Unreadable("its header cannot be read") from None
    if _has_objects(described):
        findings.issue(
            item, NAME, "low", "The array holds objects", "Its data is a pickle, which is loaded with allow_pickle=True."
        )  # fmt: skip
        findings.inspect(item.part("objects", start, item.size - start))
    elif items and start == item.size:
        raise Unreadable("its data is missing")


def _has_objects(described: object) -> bool:
    """True for any type that is not plainly of numbers or text: a doubt is a pickle to look at."""
    if isinstance(described, list | tuple):
        return any(_has_objects(part) for part in described[1:2]) if _is_field(described) else any(
            _has_objects(part) for part in described
        )  # fmt: skip
    return not isinstance(described, str) or described.lstrip("<>|=")[:1] not in set("?bBhHiIlLqQefdgFDGuOSUVcmMa") - {
        "O"
    }


def _is_field(described: list[object] | tuple[object, ...]) -> bool:
    return isinstance(described, tuple) and len(described) in (2, 3) and isinstance(described[0], str | tuple)

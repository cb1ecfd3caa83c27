"""Which bytes of a file a `Range` header asks for."""

import re

from shared.errors import Problem

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)


def span_of(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last; None for all of it, also where several ranges or nonsense is asked for."""
    match = _RANGE.fullmatch(header or "")
    if match is None:
        return None
    first, last, tail = match.groups()
    if tail is not None:
        start, end = max(0, size - int(tail)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        detail = f"The file has {size} bytes."
        raise Problem("range_not_satisfiable", detail, headers={"Content-Range": f"bytes */{size}"})
    return start, end

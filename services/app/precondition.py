"""If-Match: a change of what somebody has read at a certain revision."""

from shared.errors import Problem


def revision_of(if_match: str | None) -> int | None:
    """The revision that an If-Match header names; None for no header and for `*`."""
    if if_match is None or if_match.strip() == "*":
        return None
    value = if_match.strip().removeprefix("W/").strip('"')
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise Problem("revision_mismatch", "If-Match must be the revision that you read.")
    return int(value)

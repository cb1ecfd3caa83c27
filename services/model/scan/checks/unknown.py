"""Bytes that nothing recognises. What holds a torch storage may; elsewhere it is an error, for it cannot be judged."""

from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "unknown"
KINDS = frozenset((Kind.UNKNOWN,))


def look(item: Item, findings: Findings) -> None:
    if not item.tensor_data:
        raise Unreadable("it is of no kind that is known")

"""What a check module has. A module is a check by having these three names; `registry` lists them."""

from typing import Protocol

from services.model.scan.findings import Findings
from services.model.scan.item import Item
from services.model.scan.kinds import Kind


class Check(Protocol):
    """`NAME` is stable, in snake_case; `KINDS` are the kinds of file that it looks into."""

    NAME: str
    KINDS: frozenset[Kind]

    def look(self, item: Item, findings: Findings, /) -> None:
        """Report into `findings`. Raises Unreadable where the item cannot be judged."""

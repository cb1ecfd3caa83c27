"""Files that carry no code: texts, which were looked through to know that, and data, which is not looked into."""

from services.model.scan.findings import Findings
from services.model.scan.item import Item
from services.model.scan.kinds import Kind, identify

NAME = "data"
KINDS = frozenset((Kind.MEDIA, Kind.DATA))

_REASONS = {
    Kind.MEDIA: "an image, sound or film holds no code",
    Kind.DATA: "a vocabulary or a table of numbers holds no code",
}


def look(item: Item, findings: Findings) -> None:
    kinds = identify(item)
    if len(kinds) == 1:
        findings.skip(item, next(_REASONS[kind] for kind in kinds))

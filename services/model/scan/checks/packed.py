"""Archives that are not unpacked here (7z, rar, zstd, lz4, OLE): what is in them stays unknown, which is an error."""

from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "packed"
KINDS = frozenset((Kind.PACKED,))


def look(item: Item, findings: Findings) -> None:
    raise Unreadable("it is an archive of a kind that is not unpacked (7z, rar, zstd, lz4, cabinet or OLE)")

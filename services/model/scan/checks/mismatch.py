"""A file that is something else than its name says, or two things at once: it passes one reader and harms another."""

from services.model.scan.findings import Findings
from services.model.scan.item import Item
from services.model.scan.kinds import CLAIMS, Kind, identify
from shared.contracts.models import Severity

NAME = "mismatch"
KINDS = frozenset(Kind)

_ACTIVE = frozenset((Kind.PICKLE, Kind.EXECUTABLE, Kind.SCRIPT))
_CONTAINERS = frozenset((Kind.ZIP, Kind.TAR, Kind.COMPRESSED, Kind.PACKED))
_SOLID = frozenset(
    (Kind.SAFETENSORS, Kind.GGUF, Kind.NUMPY, Kind.HDF5, Kind.MEDIA, Kind.TAR, Kind.COMPRESSED, Kind.PICKLE, Kind.ONNX)
)
_WEIGHTS = (".safetensors", ".gguf")  # nothing but what they claim: without its header a file is cut off, or no model


def look(item: Item, findings: Findings) -> None:
    kinds = identify(item)
    claimed = CLAIMS.get(item.extension)
    if claimed is not None and not kinds & claimed and kinds != {Kind.UNKNOWN}:
        _renamed(item, findings, kinds)
    hidden = kinds & (_ACTIVE | {Kind.ZIP})
    if len(kinds & _SOLID | hidden) > 1:
        findings.issue(
            item, NAME, "high", "The file is several things at once",
            f"It can be read as each of {_named(kinds)}; which one depends on the program that opens it.",
        )  # fmt: skip


def _renamed(item: Item, findings: Findings, kinds: frozenset[Kind]) -> None:
    if item.extension in _WEIGHTS and not kinds & _ACTIVE:
        message = f"The file is not what {item.extension} says: it is {_named(kinds)}. It is damaged, or not a model."
        findings.error(item, NAME, message)
        return
    severity: Severity = "low"
    if kinds & _ACTIVE:
        severity = "high"
    elif kinds & _CONTAINERS:
        severity = "medium"
    findings.issue(
        item, NAME, severity, f"The file is not what {item.extension} says",
        f"By its content it is {_named(kinds)}.",
    )  # fmt: skip


def _named(kinds: frozenset[Kind]) -> str:
    return ", ".join(sorted(kinds))

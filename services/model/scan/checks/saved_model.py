"""TensorFlow's graphs (.pb): operators that read and write files or call Python, and Lambda layers in Keras' metadata."""

import re

from services.model.scan.findings import Findings
from services.model.scan.item import Item
from services.model.scan.kinds import Kind
from services.model.scan.protobuf import Message

NAME = "saved_model"
KINDS = frozenset((Kind.SAVED_MODEL,))

_OPERATORS = {
    "critical": ("PyFunc", "PyFuncStateless", "EagerPyFunc", "ShellExecute"),
    "high": ("WriteFile", "DebugIdentityV2", "ReadFile", "MatchingFiles", "WholeFileReader",
             "WholeFileReaderV2", "DebugNumericSummaryV2", "ImmutableConst", "RpcCall"),
}  # fmt: skip
_BLOCK = 8 * 1024**2
_OVERLAP = 256
_LAMBDA = re.compile(rb'"class_name"\s*:\s*"(?:[A-Za-z_.>]*>)?Lambda"')


def _mark(operator: str, tag: bytes) -> bytes:
    """A NodeDef's `op`, field 2, as it stands in the file; in text form, `op: "…"`."""
    return tag + bytes((len(operator),)) + operator.encode()


def look(item: Item, findings: Findings) -> None:
    text = item.extension == ".pbtxt"
    at = 0
    while block := item.at(at, _BLOCK + _OVERLAP):
        _search(item, findings, block, text)
        at += _BLOCK
    if not text:
        for _ in Message.of(item).fields():
            pass


def _search(item: Item, findings: Findings, block: bytes, text: bool) -> None:
    for severity, operators in _OPERATORS.items():
        for operator in operators:
            found = f'"{operator}"'.encode() if text else _mark(operator, b"\x12")
            if found in block:
                findings.issue(
                    item, NAME, "critical" if severity == "critical" else "high", f"The graph uses {operator}",
                    "It reaches files or runs code when the model runs.",
                )  # fmt: skip
    if _LAMBDA.search(block):
        findings.issue(
            item, NAME, "critical", "The model has a Lambda layer",
            "It holds Python code that runs when the model is loaded.",
        )  # fmt: skip

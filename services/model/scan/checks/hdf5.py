"""HDF5, as Keras keeps models in it: Lambda layers hold Python bytecode. Found by their mark in the model's JSON."""

import re

from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "hdf5"
KINDS = frozenset((Kind.HDF5,))

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_BLOCK = 8 * 1024**2
_OVERLAP = 256
_LAMBDA = re.compile(rb'"class_name"\s*:\s*"(?:[A-Za-z_.>]*>)?Lambda"')
_HIDDEN = re.compile(rb'"class_name"\s*:\s*"[^"]{0,40}\\u00')
_CODE = re.compile(rb'"module"\s*:\s*"(?:builtins|os|subprocess|sys|posix|importlib)["\.]')


def look(item: Item, findings: Findings) -> None:
    _check_size(item)
    config = False
    at = 0
    while block := item.at(at, _BLOCK + _OVERLAP):
        config = config or b"class_name" in block
        if b"class_name" in block and _LAMBDA.search(block):
            findings.issue(
                item, NAME, "critical", "The model has a Lambda layer",
                "It holds Python code that runs when the model is loaded.",
            )  # fmt: skip
        if b"class_name" in block and _HIDDEN.search(block):
            findings.issue(item, NAME, "high", "A layer's class is written in escapes", "This hides what it is.")
        if b'"module"' in block and _CODE.search(block):
            findings.issue(
                item, NAME, "critical", "A layer names a module that runs code", "Keras imports it by its name."
            )  # fmt: skip
        at += _BLOCK
    if not config and (b"model_config" in item.head or b"model_config" in item.tail):
        raise Unreadable("its model_config cannot be found in plain text")


def _check_size(item: Item) -> None:
    """The superblock says where the file ends."""
    start = next(at for at in [0, *(512 << shift for shift in range(7))] if item.head[at : at + 8] == _SIGNATURE)
    block = item.at(start, 96)
    version = block[8] if len(block) > 8 else -1
    at = {0: 40, 1: 44, 2: 28, 3: 28}.get(version)
    width = block[13] if version in (0, 1) and len(block) > 13 else 8
    if version in (2, 3) and len(block) > 9:
        width = block[9]
    if at is None or width not in (4, 8) or len(block) < 48:
        raise Unreadable("its superblock cannot be read")
    if version in (0, 1):
        at = at - 16 + 2 * width
    elif width == 4:
        at = 12 + 2 * width
    end = int.from_bytes(block[at : at + width], "little")
    if end > item.size:
        raise Unreadable("it ends too early")

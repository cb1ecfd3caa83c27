"""GGUF: bounds of its header (counts, strings, types, offsets), and the chat templates in its metadata."""

import math
import re
import struct
from typing import BinaryIO

from services.model.metadata.gguf import TENSOR_BLOCKS
from services.model.scan import limits
from services.model.scan.checks import template_rules
from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "gguf"
KINDS = frozenset((Kind.GGUF,))

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_ARRAY_DEPTH = 4
_TEMPLATE_KEY = re.compile(r"(^|[._])chat_template")


class _Header:
    """Reads the header in order; Unreadable where it would leave the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.position = 0
        file.seek(0)

    def take(self, size: int) -> bytes:
        if size > self._size - self.position:
            raise Unreadable("its header leads out of the file, or it is truncated")
        data = self._file.read(size)
        self.position += size
        return data

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize(code)))[0])

    def count(self, code: str = "Q", limit: int = limits.MAX_GGUF_COUNT) -> int:
        value = self.number(code)
        if value > limit:
            raise Unreadable(f"its header counts {value} of something, which no model has")
        return value

    def text(self, width: str) -> str:
        return self.take(self.count(width, limits.MAX_GGUF_STRING)).decode("utf-8", "replace")

    def skip_array(self, width: str, depth: int = 0) -> None:
        kind, length = self.number("I"), self.count(width)
        if kind in _NUMBERS:
            self.take(struct.calcsize(_NUMBERS[kind]) * length)
        elif kind == _STRING:
            for _ in range(length):
                self.take(self.count(width, limits.MAX_GGUF_STRING))
        elif kind == _ARRAY and depth < _MAX_ARRAY_DEPTH:
            for _ in range(length):
                self.skip_array(width, depth + 1)
        else:
            raise Unreadable(f"its metadata has an array of unknown type {kind}")


def look(item: Item, findings: Findings) -> None:
    header = _Header(item.file, item.size)
    header.take(4)
    version = header.number("I")
    if version not in (1, 2, 3):
        raise Unreadable(f"its version {version} is not known (a big-endian file, perhaps)")
    width = "I" if version == 1 else "Q"
    tensors, pairs = header.count(width), header.count(width)
    alignment = 32
    keys: set[str] = set()
    for _ in range(pairs):
        key, value = _pair(header, width)
        if key in keys:
            findings.issue(item, NAME, "high", "A key stands twice in the metadata", f"{key}: readers may differ.")
        keys.add(key)
        if key == "general.alignment":
            alignment = value if isinstance(value, int) else 0
        if isinstance(value, str) and _TEMPLATE_KEY.search(key):
            template_rules.judge(item, findings, value, key)
    if alignment < 8 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise Unreadable(f"its alignment {alignment} is not possible")
    _tensors(item, findings, header, tensors, width, alignment)


def _pair(header: _Header, width: str) -> tuple[str, int | str | None]:
    key, kind = header.text(width), header.number("I")
    if kind == _STRING:
        return key, header.text(width)
    if kind == _ARRAY:
        header.skip_array(width)
        return key, None
    if kind not in _NUMBERS:
        raise Unreadable(f"its metadata has a value of unknown type {kind}")
    if _NUMBERS[kind] in "fd":
        header.take(struct.calcsize(_NUMBERS[kind]))
        return key, None
    return key, header.number(_NUMBERS[kind])


def _tensors(item: Item, findings: Findings, header: _Header, count: int, width: str, alignment: int) -> None:
    names: set[str] = set()
    places: list[tuple[int, int]] = []
    for _ in range(count):
        name = header.text(width)
        if name in names:
            findings.issue(item, NAME, "high", "Two tensors have one name", f"{name}: readers may differ.")
        names.add(name)
        shape = [header.number(width) for _ in range(header.count("I", _MAX_DIMENSIONS))]
        kind, offset = header.number("I"), header.number("Q")
        if kind not in TENSOR_BLOCKS:
            raise Unreadable(f"the tensor {name[:100]} is of unknown type {kind}")
        if offset % alignment:
            findings.issue(item, NAME, "high", "A tensor is not aligned", f"{name} at {offset}.")
        block, size = TENSOR_BLOCKS[kind]
        values = math.prod(shape)
        if values >= 1 << 63:
            findings.issue(item, NAME, "high", "A tensor's size overflows", f"{name} has {shape} values.")
        if shape and shape[0] % block:
            findings.issue(item, NAME, "high", "A tensor does not fit its blocks", f"{name}: {shape[0]} values.")
        places.append((offset, offset + values // block * size))
    start = -(-header.position // alignment) * alignment
    at = 0
    for begin, end in sorted(places):
        if begin < at:
            findings.issue(item, NAME, "high", "Tensors overlap", f"At byte {begin} of the data.")
        at = max(at, end)
    if count and start + at > item.size:
        raise Unreadable("its tensors lie outside of the file, or it is truncated")

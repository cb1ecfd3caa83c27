"""The header of a GGUF file: its key-value pairs and the shapes and types of its tensors. Never the tensors' data.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count is checked against the bytes that remain, and
long arrays (the vocabulary) are stepped over and only counted.
"""

import math
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

MAX_HEADER = 256 * 1024 * 1024  # bytes
MAX_PAIRS = 20_000
MAX_TENSORS = 200_000
MAX_ITEMS = 5_000_000  # strings in arrays, in all
_KEEP_ITEMS = 4096
_KEEP_TEXT = 1024 * 1024
_MAX_KEY = 1024
_MAX_DIMENSIONS = 8
_ALIGNMENT = 32  # of the tensors' data, where the header does not say

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

# Type of a tensor: values in a block, bytes of a block.
TENSOR_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


class BadHeader(ValueError):
    """The file's header is not what the format says."""


@dataclass(slots=True)
class GgufHeader:
    """`lengths` has the number of items of every array; `values` keeps the short ones. `weights`: parameters by type.

    `end`: where the last tensor ends, in bytes from the start of the file; those of a type that is not known count 0.
    """

    values: dict[str, Value] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    weights: Counter[str] = field(default_factory=Counter)
    end: int = 0

    @property
    def architecture(self) -> str | None:
        found = self.values.get("general.architecture")
        return found if isinstance(found, str) else None

    @property
    def parameters(self) -> int:
        return self.weights.total()

    @property
    def quantization(self) -> str | None:
        """By the file type that the header names, else the type that most parameters have."""
        kind = self.values.get("general.file_type")
        if isinstance(kind, int) and kind in FILE_TYPES:
            return FILE_TYPES[kind]
        return max(self.weights, key=lambda name: self.weights[name]) if self.weights else None


def read_gguf(path: Path) -> GgufHeader:
    """Raises `BadHeader`."""
    with path.open("rb", buffering=256 * 1024) as file:
        size = path.stat().st_size
        return _Reader(file, min(size, MAX_HEADER)).header()


class _Reader:
    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file = file
        self._end = end
        self._at = 0
        self._items_left = MAX_ITEMS

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise BadHeader("the file does not begin as GGUF files do")
        if self._number("I") not in (2, 3):
            raise BadHeader("the version is not known, or the byte order is not little-endian")
        tensors, pairs = self._number("Q"), self._number("Q")
        if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
            raise BadHeader("the counts are too large")
        header = GgufHeader()
        for _ in range(pairs):
            self._pair(header)
        data = max([self._tensor(header) for _ in range(tensors)], default=0)
        alignment = header.values.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise BadHeader("the alignment is not possible")
        header.end = -(-self._at // alignment) * alignment + data if tensors else self._at
        return header

    def _pair(self, header: GgufHeader) -> None:
        key = self._key()
        kind = self._number("I")
        if kind == _ARRAY:
            item, count = self._number("I"), self._number("Q")
            header.lengths[key] = count
            kept = self._array(item, count)
            if kept is not None:
                header.values.setdefault(key, kept)
        elif kind == _STRING:
            value = self._text(_KEEP_TEXT)
            if value is not None:
                header.values.setdefault(key, value)
        else:
            header.values.setdefault(key, self._scalar(kind))

    def _tensor(self, header: GgufHeader) -> int:
        """Where it ends in the data that follows the header."""
        self._key()
        dimensions = self._number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise BadHeader("a tensor has too many dimensions")
        shape = [self._number("Q") for _ in range(dimensions)]
        kind = self._number("I")
        offset = self._number("Q")
        count = math.prod(shape)
        if count > 2**50:
            raise BadHeader("a tensor is too large")
        header.weights[TENSOR_TYPES.get(kind, f"type {kind}")] += count
        values, size = TENSOR_BLOCKS.get(kind, (1, 0))
        return offset + count // values * size

    def _array(self, item: int, count: int) -> list[Scalar] | None:
        """The items of a short array, None for one that was stepped over."""
        if item == _STRING:
            if count > min(self._items_left, (self._end - self._at) // 8):
                raise BadHeader("an array has more items than the file has bytes")
            self._items_left -= count
            if count > _KEEP_ITEMS:
                for _ in range(count):
                    self._skip(self._number("Q"))
                return None
            return [found for _ in range(count) if (found := self._text(_MAX_KEY)) is not None]
        if item not in _SCALARS:
            raise BadHeader("an array's items have an unknown type")
        width = struct.calcsize(f"<{_SCALARS[item]}")
        if count > _KEEP_ITEMS:
            self._skip(count * width)
            return None
        return [self._scalar(item) for _ in range(count)]

    def _key(self) -> str:
        key = self._text(_MAX_KEY)
        if key is None:
            raise BadHeader("a key is too long")
        return key

    def _text(self, keep: int) -> str | None:
        length = self._number("Q")
        if length > keep:
            self._skip(length)
            return None
        return self._take(length).decode("utf-8", "replace")

    def _scalar(self, kind: int) -> Scalar:
        if kind not in _SCALARS:
            raise BadHeader("a value has an unknown type")
        code = f"<{_SCALARS[kind]}"
        value: Scalar = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return value

    def _number(self, code: str) -> int:
        return int(struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0])

    def _take(self, length: int) -> bytes:
        if length > self._end - self._at:
            raise BadHeader("the header ends early")
        data = self._file.read(length)
        if len(data) != length:
            raise BadHeader("the header ends early")
        self._at += length
        return data

    def _skip(self, length: int) -> None:
        if length > self._end - self._at:
            raise BadHeader("the header ends early")
        self._file.seek(length, 1)
        self._at += length

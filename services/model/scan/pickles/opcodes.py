"""Reads a pickle's opcodes one by one from a file, without keeping long byte strings: they are only pointed to."""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from services.model.scan import limits

MAX_LINE = 1024 * 1024


class Broken(Exception):
    """The bytes are not a pickle from `position` on."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {position}")
        self.position = position


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that were not kept: where they lie in the file."""

    start: int
    size: int


Argument = int | float | str | bytes | Span | None

NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_FIXED = {"uint1": 1, "uint2": 2, "int4": 4, "uint4": 4, "uint8": 8, "float8": 8}
_COUNTED = {  # name of the argument: bytes of its length, whether it is text
    "string1": (1, False),
    "string4": (4, False),
    "bytes1": (1, False),
    "bytes4": (4, False),
    "bytes8": (8, False),
    "bytearray8": (8, False),
    "unicodestring1": (1, True),
    "unicodestring4": (4, True),
    "unicodestring8": (8, True),
    "long1": (1, False),
    "long4": (4, False),
}
_SHAPES = {ord(opcode.code): opcode.arg.name if opcode.arg else None for opcode in pickletools.opcodes}


class Reader:
    """The opcodes of one file from `start` on. `position` is where the next one begins."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._end = end
        self.position = start
        file.seek(start)

    def next(self) -> tuple[int, str, Argument]:
        """Position, name and argument of the next opcode. Raises Broken."""
        start = self.position
        code = self._take(1)[0]
        name = NAMES.get(code)
        if name is None:
            raise Broken(start, f"byte 0x{code:02x} is no opcode")
        shape = _SHAPES[code]
        return start, name, None if shape is None else self._argument(name, shape)

    def skip(self, size: int) -> None:
        """Leave out bytes that stand between opcodes."""
        if self.position + size > self._end:
            raise Broken(self.position, "the data ends too early")
        self.position += size
        self._file.seek(self.position)

    def peek(self, size: int) -> bytes:
        data = self._file.read(max(0, min(size, self._end - self.position)))
        self._file.seek(self.position)
        return data

    def _argument(self, name: str, shape: str) -> Argument:
        if shape in _FIXED:
            data = self._take(_FIXED[shape])
            return 0.0 if shape == "float8" else int.from_bytes(data, "little", signed=shape == "int4")
        if shape in _COUNTED:
            return self._counted(shape)
        if shape == "stringnl_noescape_pair":
            return f"{_name(self._line())} {_name(self._line())}"
        return _line_value(name, self._line(), self.position)

    def _counted(self, shape: str) -> Argument:
        width, text = _COUNTED[shape]
        size = int.from_bytes(self._take(width), "little")
        if size > self._end - self.position:
            raise Broken(self.position, "a string is longer than the file")
        if size >= limits.LARGE_BYTES:
            span = Span(self.position, size)
            self.skip(size)
            return span
        data = self._take(size)
        if shape.startswith("long"):
            return int.from_bytes(data, "little", signed=True)
        return data.decode("utf-8", "surrogatepass") if text and _decodes(data) else data

    def _take(self, size: int) -> bytes:
        if self.position + size > self._end:
            raise Broken(self.position, "the data ends too early")
        data = self._file.read(size)
        if len(data) != size:
            raise Broken(self.position, "the data ends too early")
        self.position += size
        return data

    def _line(self) -> bytes:
        line = self._file.readline(min(MAX_LINE, self._end - self.position))
        if not line.endswith(b"\n"):
            raise Broken(self.position, "a line does not end")
        self.position += len(line)
        return line[:-1]


def _decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _name(line: bytes) -> str:
    return line.decode("utf-8", "replace")


def _line_value(name: str, line: bytes, position: int) -> Argument:
    """The argument of a protocol 0 opcode, which is a line of text."""
    if name in ("INT", "LONG", "GET", "PUT"):
        return int(_number(name, line.rstrip(b"L"), int, position))
    if name == "FLOAT":
        return _number(name, line, float, position)
    if name == "STRING":
        line = line.strip()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            raise Broken(position, "STRING is not quoted")
        return _unescape(line[1:-1], "unicode_escape")
    return _unescape(line, "raw_unicode_escape") if name == "UNICODE" else _name(line)


def _number(name: str, line: bytes, kind: Callable[[bytes], float], position: int) -> float:
    try:
        return kind(line)
    except ValueError:
        raise Broken(position, f"{name} is not followed by a number") from None


def _unescape(line: bytes, codec: str) -> str:
    try:
        return line.decode(codec)
    except UnicodeDecodeError:
        return _name(line)

"""Reads protobuf's wire format from a file, field by field, without a schema; long fields are only pointed to."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.model.scan.findings import Unreadable
from services.model.scan.item import Item

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Message:
    """A window on the item: a message, or a field's bytes."""

    item: Item
    start: int
    size: int

    @classmethod
    def of(cls, item: Item) -> "Message":
        return cls(item, 0, item.size)

    def text(self) -> str:
        """Of at most 64 KiB; longer ones are cut."""
        return self.item.at(self.start, min(self.size, 65536)).decode("utf-8", "replace")

    def fields(self) -> Iterator[tuple[int, "int | Message"]]:
        """Number and value of each field. Unreadable where the bytes are not protobuf."""
        at, end = self.start, self.start + self.size
        while at < end:
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            if number == 0:
                raise Unreadable("it is not a protobuf message")
            if wire == _VARINT:
                value, at = self._varint(at, end)
                yield number, value
                continue
            if wire == _BYTES:
                size, at = self._varint(at, end)
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
            else:
                raise Unreadable("it is not a protobuf message")
            if at + size > end:
                raise Unreadable("it ends too early, or is not a protobuf message")
            if wire == _BYTES:
                yield number, Message(self.item, at, size)
            at += size

    def messages(self, number: int) -> Iterator["Message"]:
        """The fields of one number that have a length."""
        for found, value in self.fields():
            if found == number and isinstance(value, Message):
                yield value

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for index, byte in enumerate(self.item.at(at, min(10, end - at))):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, at + index + 1
        raise Unreadable("it ends too early, or is not a protobuf message")

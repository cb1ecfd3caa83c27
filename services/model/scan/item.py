"""One thing to look into: a file of the model, or a member of an archive, as bytes that can be read anywhere."""

import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from services.model.scan import limits


class Slice(io.RawIOBase):
    """A window on another file, with its own position. Neither copies nor closes the other."""

    def __init__(self, base: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self._base, self._start, self._size, self._at = base, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: any buffer; ours is always one
        self._base.seek(self._start + self._at)
        data = self._base.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass
class Item:
    """`name` is as reports show it (`archive.zip:inner.pkl`); `path` is its name in what holds it.

    `tensor_data` marks what its container keeps as raw numbers: bytes that nothing recognises are then no error.
    """

    name: str
    path: str
    size: int
    opener: Callable[[], BinaryIO] = field(repr=False)
    depth: int = 0
    tensor_data: bool = False
    kinds: frozenset[str] | None = None  # set by kinds.identify

    @classmethod
    def of_file(cls, path: str, location: Path, size: int) -> "Item":
        return cls(path, path, size, lambda: location.open("rb"))

    @classmethod
    def of_bytes(cls, name: str, path: str, data: bytes, depth: int) -> "Item":
        return cls(name, path, len(data), lambda: io.BytesIO(data), depth)

    def part(self, member: str, start: int, size: int, tensor_data: bool = False) -> "Item":
        """A member that lies in this item uncompressed."""
        return Item(
            f"{self.name}:{member}",
            member,
            size,
            lambda: cast(BinaryIO, io.BufferedReader(Slice(self.file, start, size), limits.HEAD_OF_NUMBERS)),
            self.depth + 1,
            tensor_data,
        )

    def unpacked(self, member: str, source: IO[bytes], limit: int) -> "Item":
        """A member from a decompressing stream, kept in memory or a nameless file. ValueError above `limit` bytes."""
        spool = tempfile.SpooledTemporaryFile(max_size=limits.SPOOL_IN_MEMORY)  # noqa: SIM115  # lives as the item does
        size = 0
        while block := source.read(1 << 20):
            size += len(block)
            if size > limit:
                raise ValueError("it unpacks to more than is allowed")
            spool.write(block)
        return Item(f"{self.name}:{member}", member, size, lambda: cast(BinaryIO, spool), self.depth + 1)

    @cached_property
    def file(self) -> BinaryIO:
        return self.opener()

    def close(self) -> None:
        if "file" in self.__dict__:
            self.file.close()

    @property
    def extension(self) -> str:
        """With the dot, in lower case; "" if there is none."""
        return PurePosixPath(self.path.replace("\\", "/")).suffix.lower()

    @property
    def basename(self) -> str:
        return self.path.replace("\\", "/").rpartition("/")[2].lower()

    def at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on; fewer at the end."""
        self.file.seek(offset)
        return self.file.read(length)

    @cached_property
    def head(self) -> bytes:
        return self.at(0, limits.HEAD_OF_NUMBERS if self.tensor_data else limits.HEAD)

    @cached_property
    def tail(self) -> bytes:
        return self.at(max(0, self.size - limits.HEAD - 22), limits.HEAD + 22)

    def whole(self, limit: int) -> bytes:
        """Everything. ValueError above `limit` bytes."""
        if self.size > limit:
            raise ValueError(f"it is larger than {limit} bytes and cannot be read as a whole")
        return self.at(0, self.size)

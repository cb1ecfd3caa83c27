"""The files of a tar archive, plain or compressed with gzip, read once from front to back.

tarfile reads extended headers whole into memory, and gzip makes them cheap: what it reads for a header is bounded.
"""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from services.model.sources.fetching.members import BadArchive, Member

MAX_HEADERS = 1024 * 1024  # bytes between the contents of two files; a header has 512
MAX_READ = 1024 * 1024  # bytes of content at a time
_MAX_ENTRIES = 50_000  # folders included
_FAULTS = (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError, OSError, RecursionError)


def tar_members(file: BinaryIO) -> Iterator[Member]:
    """Raises `BadArchive`."""
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    forward = _Forward(cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")) if compressed else file)
    try:
        archive = tarfile.open(fileobj=cast(BinaryIO, forward), mode="r:")  # noqa: SIM115 - closed below
    except _FAULTS:
        raise BadArchive("it is not a readable tar file") from None
    with archive:
        for _ in range(_MAX_ENTRIES):
            member = _next(archive, forward)
            if member is None:
                return
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise BadArchive("it holds a link, a sparse or a special file")
            content = archive.extractfile(member)
            if content is None:
                raise BadArchive("a member cannot be read")
            yield Member(member.name, member.size, _reader(content.read, forward))
    raise BadArchive("it has too many entries")


def _next(archive: tarfile.TarFile, forward: "_Forward") -> tarfile.TarInfo | None:
    forward.allowance = MAX_HEADERS
    try:
        member = archive.next()
    except _FAULTS:
        raise BadArchive("it is damaged") from None
    if member is None and any(forward.block):
        # tarfile takes a broken header for the end; the true one is a block of zeros
        raise BadArchive("it is damaged or ends early")
    # tarfile would keep every member and every global header
    archive.members = []  # type: ignore[attr-defined]
    archive.pax_headers = {}
    return member


class _Forward:
    """A stream that tarfile takes for a seekable file: it moves forwards by reading, and back by one byte."""

    def __init__(self, source: BinaryIO) -> None:
        self.allowance = MAX_HEADERS  # bytes that may still be read
        self.block = b"-"  # what the last read gave
        self._source = source
        self._position = 0
        self._last = b""
        self._back = False

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.allowance:
            raise tarfile.ReadError("a header is too large")
        if self._back and size:
            self._back = False
            self._position += 1
            return self._last + self.read(size - 1)
        self.allowance -= size
        data = self._source.read(size)
        if data:
            self._position += len(data)
            self._last = data[-1:]
        if size:
            self.block = data or b"-"
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position == self._position - 1 and self._last and not self._back:
            self._back = True
            self._position = position
            return position
        if position < self._position:
            raise tarfile.ReadError("the archive goes backwards")
        while self._position < position:
            if not self.read(min(MAX_READ, position - self._position)):
                raise tarfile.ReadError("the archive ends early")
        return position

    def close(self) -> None:
        self._source.close()


def _reader(read: Callable[[int], bytes], forward: _Forward) -> Callable[[int], bytes]:
    def guarded(size: int) -> bytes:
        forward.allowance = MAX_READ
        try:
            return read(size)
        except _FAULTS:
            raise BadArchive("a member is damaged") from None

    return guarded

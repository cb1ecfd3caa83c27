"""Single compressed streams (gzip, bzip2, xz, lzma, zlib), as joblib and tar.gz have them."""

import bz2
import gzip
import io
import lzma
import zlib
from typing import IO, BinaryIO, cast

from services.model.scan import limits
from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "compressed"
KINDS = frozenset((Kind.COMPRESSED,))

_SUFFIXES = (".gz", ".bz2", ".xz", ".z", ".lzma", ".zlib")


def look(item: Item, findings: Findings) -> None:
    limit = min(findings.budget, max(limits.RATIO_FROM, item.size * limits.MAX_RATIO))
    item.file.seek(0)
    try:
        inner = item.unpacked(_inner_name(item.path), _stream(item), limit)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise Unreadable(f"the compressed data cannot be unpacked: {error}") from None
    findings.spend(inner.size, item.size)
    findings.inspect(inner)


def _inner_name(path: str) -> str:
    name = path.replace("\\", "/").rpartition("/")[2]
    if name.lower().endswith(".tgz"):
        return name[:-4] + ".tar"
    return next((name[: -len(suffix)] for suffix in _SUFFIXES if name.lower().endswith(suffix)), name)


def _stream(item: Item) -> IO[bytes]:
    head = item.head
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=item.file))
    if head.startswith(b"BZh"):
        return bz2.BZ2File(item.file)
    if head.startswith((b"\xfd7zXZ", b"\x5d\x00\x00")):
        return lzma.LZMAFile(item.file)
    return cast(IO[bytes], io.BufferedReader(_Zlib(item.file)))


class _Zlib(io.RawIOBase):
    """A zlib stream as a file. EOFError if it ends too early."""

    def __init__(self, source: BinaryIO) -> None:
        super().__init__()
        self._source = source
        self._decoder = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: any buffer; ours is always one
        while not self._decoder.eof:
            packed = self._decoder.unconsumed_tail or self._source.read(65536)
            if not packed:
                raise EOFError("it ends too early")
            data = self._decoder.decompress(packed, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0

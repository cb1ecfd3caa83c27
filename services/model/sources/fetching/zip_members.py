"""The files of a zip archive. The table of contents is measured before zipfile reads it into memory."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from services.model.sources.fetching.members import BadArchive, Member

MAX_CONTENTS = 8 * 1024 * 1024  # bytes of the table of contents
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    struct.error,
    OSError,
)


def zip_members(file: BinaryIO) -> Iterator[Member]:
    """Raises `BadArchive`."""
    _check_contents(file)
    try:
        archive = zipfile.ZipFile(file)
    except _FAULTS:
        raise BadArchive("it is not a readable zip file") from None
    with archive:
        for info in archive.infolist():
            _check(info)
            if info.is_dir():
                continue
            try:
                opened = archive.open(info)
            except _FAULTS:
                raise BadArchive("a member cannot be read") from None
            with opened:
                # the name as stored: zipfile cuts it at a NUL byte
                yield Member(info.orig_filename, info.file_size, _reader(opened.read))


def _check(info: zipfile.ZipInfo) -> None:
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR and not info.is_dir()):
        raise BadArchive("it holds a link or a special file")
    if info.flag_bits & 0x1:
        raise BadArchive("it is encrypted")
    if info.compress_type not in _METHODS:
        raise BadArchive("it uses a compression that is not stored or deflate")


def _check_contents(file: BinaryIO) -> None:
    size = file.seek(0, 2)
    start = max(0, size - 65_557)
    file.seek(start)
    tail = file.read(65_557)
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise BadArchive("it is not a zip file")
    length = int(struct.unpack_from("<L", tail, at + 12)[0])
    locator = at - 20
    if locator >= 0 and tail[locator : locator + 4] == _LOCATOR64:
        place = int(struct.unpack_from("<Q", tail, locator + 8)[0])
        if place > size - 56:
            raise BadArchive("its table of contents is not where it says")
        file.seek(place)
        record = file.read(56)
        if len(record) < 56 or record[:4] != _END64:
            raise BadArchive("its table of contents is not where it says")
        length = max(length if length != 0xFFFFFFFF else 0, int(struct.unpack_from("<Q", record, 40)[0]))
    if length > MAX_CONTENTS:
        raise BadArchive("its table of contents is too large")
    file.seek(0)


def _reader(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    def guarded(size: int) -> bytes:
        try:
            return read(size)
        except _FAULTS:
            raise BadArchive("a member is damaged") from None

    return guarded

"""Unpacking an archive from a stranger into the object store, one member at a time.

Only regular files under safe paths come out. The count, the bytes in all and the ratio to the archive are limited while
unpacking, whatever the headers say; links, devices, encrypted and sparse members are refused with the whole archive.
`zip_members` and `tar_members` read the formats.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from services.model.sources.base import SourceContext
from services.model.sources.fetching.members import BadArchive, Member
from services.model.sources.fetching.paths import PathSet, UnsafePath
from services.model.sources.fetching.tar_members import tar_members
from services.model.sources.fetching.zip_members import zip_members
from shared.contracts.models import ModelFile
from shared.jobs.outcomes import Permanent
from shared.objects.blocking import settled

MAX_MEMBERS = 10_000
MAX_RATIO = 200  # bytes out for a byte in, once there are more than the next
RATIO_FREE = 64 * 1024 * 1024
_CHUNK = 1024 * 1024
_SLICE = 8 * _CHUNK  # between two chances to stop

_KINDS = {".zip": "zip", ".tar": "tar", ".tar.gz": "tar", ".tgz": "tar"}
_READERS: dict[str, Callable[[BinaryIO], Iterator[Member]]] = {"zip": zip_members, "tar": tar_members}


def archive_kind(name: str) -> str | None:
    """`zip` or `tar` by the name's ending, None if it is no archive."""
    return next((kind for ending, kind in _KINDS.items() if name.lower().endswith(ending)), None)


async def unpack(archive: Path, kind: str, target: Path, context: SourceContext) -> list[ModelFile]:
    """Store every file of the archive; `target` is where one lies while it is unpacked. Raises `Permanent`."""
    files: list[ModelFile] = []
    with archive.open("rb") as file:
        limits = _Limits(os.fstat(file.fileno()).st_size, context.max_bytes)
        members = _guarded(_READERS[kind](file))
        paths = PathSet()
        try:
            while (member := await settled(_next, members)) is not None:
                limits.count()
                files.append(await _store(member, _path(member, paths), target, context, limits))
        finally:
            members.close()
            target.unlink(missing_ok=True)
    return files


async def _store(member: Member, path: str, target: Path, context: SourceContext, limits: "_Limits") -> ModelFile:
    digest = hashlib.sha256()
    size = 0
    with target.open("wb") as out:
        while True:
            count = await settled(_copy_slice, member, out, digest, limits)
            if not count:
                break
            size += count
            await asyncio.sleep(0)
    if size != member.size:
        raise Permanent("unsafe_archive", "A member of the archive is not as large as the archive says.")
    stored = ModelFile(path=path, size=size, sha256=digest.hexdigest())
    await context.claim([stored], None)
    await context.objects.adopt(target, stored.sha256)
    return stored


def _copy_slice(member: Member, out: BinaryIO, digest: "hashlib._Hash", limits: "_Limits") -> int:
    done = 0
    with _faults():
        while done < _SLICE:
            data = member.read(_CHUNK)
            if not data:
                break
            limits.add(len(data))
            digest.update(data)
            out.write(data)
            done += len(data)
    return done


class _Limits:
    def __init__(self, archive_size: int, max_bytes: int) -> None:
        self._bytes_left = max_bytes
        self._ratio_left = max(RATIO_FREE, archive_size * MAX_RATIO)
        self._members = 0

    def count(self) -> None:
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise Permanent("unsafe_archive", f"The archive has more than {MAX_MEMBERS} files.")

    def add(self, size: int) -> None:
        self._bytes_left -= size
        self._ratio_left -= size
        if self._bytes_left < 0:
            raise Permanent("model_too_large", "The archive's content is larger than is allowed.")
        if self._ratio_left < 0:
            raise Permanent("unsafe_archive", "The archive's content is far larger than the archive: a bomb.")


class _Guarded:
    """Members, with every fault of the format as one outcome."""

    def __init__(self, members: Iterator[Member]) -> None:
        self._members = members

    def __next__(self) -> Member | None:
        with _faults():
            return next(self._members, None)

    def close(self) -> None:
        close = getattr(self._members, "close", None)
        if close:
            close()


def _guarded(members: Iterator[Member]) -> _Guarded:
    return _Guarded(members)


def _next(members: _Guarded) -> Member | None:
    return members.__next__()


def _path(member: Member, paths: PathSet) -> str:
    try:
        return paths.add(member.path)
    except UnsafePath as unsafe:
        raise Permanent("unsafe_archive", f"The archive has a path that is not safe: {unsafe}.") from None


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except BadArchive as bad:
        raise Permanent("unsafe_archive", f"The archive is refused: {bad}.") from None

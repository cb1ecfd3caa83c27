"""The object store that is a folder. The rules it keeps are those of `shared.objects.store.ObjectStore`.

    <root>/blobs/ab/abcd…        content, read only
    <root>/manifests/<d>.json    small documents
    <root>/incoming/             files on their way to their key
    <root>/scratch/<name>/       unfinished downloads

An object gets its name by a rename, after its bytes are on the disk; the folder is synced before the caller hears.
"""

import errno
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import uuid4

from shared.objects.blocking import settled
from shared.objects.durable import copy_hashing, make_directories, sync_directory, sync_file, write_whole
from shared.objects.scratch import Scratch
from shared.objects.store import (
    CHUNK,
    MAX_DOCUMENT,
    FileIdentity,
    ObjectInfo,
    ObjectNotFound,
    SourceChanged,
    blob_key,
    checked_key,
)

T = TypeVar("T")


class DirectoryStore:
    """Objects in the folder `root`, which is made if need be. Several processes may share it."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        for folder in (self._root, self._root / "incoming"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scratch = Scratch(self._root / "scratch")

    @property
    def root(self) -> Path:
        return self._root

    async def prepare(self) -> None:
        """Nothing is to be done: the folder is there."""

    async def adopt(self, file: Path, sha256: str) -> ObjectInfo:
        return await settled(self._adopt, file, blob_key(sha256))

    async def ingest(
        self, source: Path, *, expect: FileIdentity | None = None, on_bytes: Callable[[int], None] | None = None
    ) -> ObjectInfo:
        temporary = self._incoming()
        copy = _copy(source, temporary, expect)
        digest = ""
        try:
            while (progress := await settled(_next, copy)) is not None:
                done, digest = progress
                if on_bytes:
                    on_bytes(done)
            return await self.adopt(temporary, digest)
        finally:
            copy.close()
            temporary.unlink(missing_ok=True)

    async def put(self, key: str, data: bytes) -> ObjectInfo:
        return await settled(self._put, checked_key(key), data)

    async def get(self, key: str, *, limit: int = MAX_DOCUMENT) -> bytes:
        def whole() -> bytes:
            with _opened(self._path(key), key) as file:
                data = file.read(limit + 1)
            if len(data) > limit:
                raise ValueError(f"the object {key} is larger than {limit} bytes")
            return data

        return await settled(whole)

    async def read(
        self, key: str, *, start: int = 0, length: int | None = None, chunk: int = CHUNK
    ) -> AsyncIterator[bytes]:
        if start < 0 or (length is not None and length < 0):
            raise ValueError("a range begins at 0 or later and has no negative length")
        file = await settled(_opened, self._path(key), key)
        try:
            while length is None or length > 0:
                data = await settled(os.pread, file.fileno(), chunk if length is None else min(chunk, length), start)
                if not data:
                    return
                start += len(data)
                length = None if length is None else length - len(data)
                yield data
        finally:
            file.close()

    async def pour(self, key: str, take: Callable[[bytes], None], *, start: int = 0) -> None:
        async for data in self.read(key, start=start):
            await settled(take, data)

    async def stat(self, key: str) -> ObjectInfo:
        return await settled(self._stat, checked_key(key))

    async def exists(self, key: str) -> bool:
        try:
            await self.stat(key)
        except ObjectNotFound:
            return False
        return True

    async def delete(self, key: str) -> bool:
        def unlink() -> bool:
            path = self._path(key)
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return False
            sync_directory(path.parent)
            return True

        return await settled(unlink)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        walk = _walk(self._root, self._root, prefix)
        while (found := await settled(_next, walk)) is not None:
            for info in found:
                yield info

    async def free_bytes(self) -> int:
        return (await settled(shutil.disk_usage, self._root)).free

    async def local_free_bytes(self) -> int:
        return await self._scratch.free_bytes()

    def scratch(self, name: str) -> Path:
        return self._scratch.folder(name)

    async def drop_scratch(self, name: str) -> None:
        await self._scratch.drop(name)

    async def sweep_scratch(self, older_than: float) -> int:
        return await settled(self._sweep, time.time() - older_than)

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    async def link(self, key: str, seconds: float) -> str | None:
        return None

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def _incoming(self) -> Path:
        return self._root / "incoming" / uuid4().hex

    def _stat(self, key: str) -> ObjectInfo:
        try:
            status = self._path(key).lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectNotFound(f"there is no object {key}") from None
        if not stat.S_ISREG(status.st_mode):
            raise ObjectNotFound(f"there is no object {key}")
        return ObjectInfo(key, status.st_size, status.st_mtime)

    def _adopt(self, file: Path, key: str) -> ObjectInfo:
        if file.is_symlink() or not file.is_file():
            raise ObjectNotFound("the file to store is not a regular file")
        target = self._path(key)
        size = file.stat().st_size
        if _touched(target, size):
            file.unlink()
            return self._stored(key, size)
        sync_file(file)
        make_directories(target.parent, self._root)
        file.chmod(0o444)
        try:
            file.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._move_across(file, target)
        sync_directory(target.parent)
        return self._stored(key, size)

    def _move_across(self, file: Path, target: Path) -> None:
        temporary = self._incoming()
        try:
            shutil.copyfile(file, temporary)
            temporary.chmod(0o444)
            sync_file(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        file.unlink()

    def _put(self, key: str, data: bytes) -> ObjectInfo:
        path = self._path(key)
        temporary = self._incoming()
        make_directories(path.parent, self._root)
        try:
            write_whole(path, data, temporary)
        finally:
            temporary.unlink(missing_ok=True)
        return self._stored(key, len(data))

    def _stored(self, key: str, size: int) -> ObjectInfo:
        """Of what was just stored, even where somebody has deleted it since."""
        try:
            return self._stat(key)
        except ObjectNotFound:
            return ObjectInfo(key, size, time.time())

    def _sweep(self, before: float) -> int:
        removed = 0
        for file in (self._root / "incoming").iterdir():
            try:
                if file.lstat().st_mtime < before:
                    file.unlink()
                    removed += 1
            except FileNotFoundError:
                continue
        return removed + self._scratch.sweep(before)


def _opened(path: Path, key: str) -> BinaryIO:
    """An object's file, open for reading without following a link. Raises `ObjectNotFound`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise ObjectNotFound(f"there is no object {key}") from None
    return os.fdopen(descriptor, "rb", buffering=0)


def _copy(source: Path, temporary: Path, expect: FileIdentity | None) -> Generator[tuple[int, str], None, None]:
    """Copy a regular file, refusing one that is not as expected before, during or after."""
    # O_NONBLOCK: opening a named pipe must not wait for a writer
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(reader)
        if not stat.S_ISREG(before.st_mode) or (expect and FileIdentity.of(before) != expect):
            raise SourceChanged("the file is not the one that was looked at before")
        writer = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            done = 0
            for done, digest in copy_hashing(reader, writer):
                if done > before.st_size:
                    break
                yield done, digest
        finally:
            os.close(writer)
        if done != before.st_size or FileIdentity.of(os.fstat(reader)) != FileIdentity.of(before):
            raise SourceChanged("the file changed while it was copied")
    finally:
        os.close(reader)


def _walk(root: Path, folder: Path, prefix: str) -> Iterator[list[ObjectInfo]]:
    """One list per folder, so that a store of many blobs is never all in memory."""
    at = folder.relative_to(root).as_posix()
    base = "" if at == "." else f"{at}/"
    names = sorted(os.scandir(folder), key=lambda entry: entry.name + ("/" if entry.is_dir() else ""))
    files: list[ObjectInfo] = []
    for entry in names:
        key = base + entry.name
        if entry.is_dir(follow_symlinks=False):
            inside = f"{key}/"
            if inside in ("scratch/", "incoming/") or not (inside.startswith(prefix) or prefix.startswith(inside)):
                continue
            if files:
                yield files
                files = []
            yield from _walk(root, folder / entry.name, prefix)
        elif key.startswith(prefix) and entry.is_file(follow_symlinks=False):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            files.append(ObjectInfo(key, status.st_size, status.st_mtime))
    if files:
        yield files


def _touched(target: Path, size: int) -> bool:
    """Whether the blob is there; its last use counts from now, so that a collector of unused blobs lets it be.

    A blob of the wrong size is one that another program cut short: new bytes take its place.
    """
    try:
        if target.lstat().st_size != size or not target.is_file():
            return False
        os.utime(target)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _next(items: Iterator[T]) -> T | None:
    return next(items, None)

"""The objects of an installation as they are while a backup is made, from a folder or from a bucket.

Each is looked at before and after the dump, so that whatever the dump names is in one of the two. Objects never change.
"""

import asyncio
import fcntl
import os
import shutil
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar
from uuid import uuid4

from services.assembly.process import StartError
from services.embedded.folder import Places
from shared.objects.fetching import check_room, fetch
from shared.objects.opened import open_store
from shared.objects.store import ObjectInfo, ObjectNotFound, ObjectStore, WrongDigest, blob_key
from shared.settings import Settings

T = TypeVar("T")


class Snapshot(Protocol):
    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def take(self) -> None:
        """Look what there is."""
        ...

    def objects(self) -> Iterator[tuple[str, Path]]:
        """(key, file) of all that was seen; a file is there until the next one is asked for."""
        ...


def snapshot_of(settings: Settings, places: Places) -> Snapshot:
    if settings.s3_bucket is None:
        return FolderSnapshot(places.objects)
    return BucketSnapshot(open_store(settings, places.objects))


class _Held:
    """A scratch folder that no sweep takes, gone at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)


class FolderSnapshot(_Held):
    """Hard links in a scratch folder: what is deleted while the backup is made stays readable."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "scratch" / f"backup-{uuid4().hex}")
        self._root = root

    def take(self) -> None:
        for key, path in _files(self._root):
            target = self._folder / key
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                target.hardlink_to(path)
            except (FileExistsError, FileNotFoundError):
                continue

    def objects(self) -> Iterator[tuple[str, Path]]:
        return _files(self._folder)


class BucketSnapshot(_Held):
    """Copies, one at a time. A bucket keeps nothing that is deleted meanwhile: the backup fails then, and says so."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store.scratch(f"backup-{uuid4().hex}"))
        self._store = store
        self._seen: dict[str, ObjectInfo] = {}
        self._runner = asyncio.Runner()

    def __exit__(self, *_: object) -> None:
        self._runner.close()
        super().__exit__()

    def take(self) -> None:
        self._seen |= {info.key: info for info in self._run(self._list())}

    def objects(self) -> Iterator[tuple[str, Path]]:
        for key, info in sorted(self._seen.items()):
            path = self._folder / "object"
            self._run(self._bring(info, path))
            yield key, path
            path.unlink()

    async def _list(self) -> list[ObjectInfo]:
        return [info async for info in self._store.list()]

    async def _bring(self, info: ObjectInfo, path: Path) -> None:
        sha256 = info.key.rpartition("/")[2]
        try:
            if info.key.startswith("blobs/") and info.key == blob_key(sha256):
                await check_room(self._folder, info.size)
                await fetch(self._store, sha256, path)
            else:
                path.write_bytes(await self._store.get(info.key))
        except ObjectNotFound:
            raise StartError(f"The object {info.key} was deleted while it was backed up: run it again.") from None
        except WrongDigest:
            raise StartError(f"The object {info.key} is damaged in the bucket; nothing was backed up.") from None

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """(key, path) of every object below a folder, without what is unfinished."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        if here == root:
            folders[:] = [name for name in folders if name not in ("scratch", "incoming")]
        folders.sort()
        for name in sorted(files):
            if not name.startswith("."):
                yield (here / name).relative_to(root).as_posix(), here / name

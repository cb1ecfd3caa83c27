"""Local folders for unfinished work: the part that every object store has on this machine's disk."""

import fcntl
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from shared.objects.blocking import settled
from shared.objects.store import ObjectStore, checked_name


class Scratch:
    """Folders below `root`, which is made if need be. A folder is held by an exclusive flock on its file `.lock`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, name: str) -> Path:
        path = self.root / checked_name(name)
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    async def drop(self, name: str) -> None:
        await settled(shutil.rmtree, self.root / checked_name(name), ignore_errors=True)

    async def free_bytes(self) -> int:
        return (await settled(shutil.disk_usage, self.root)).free

    def sweep(self, before: float) -> int:
        """Remove what nobody holds and nobody has touched since `before` (seconds since the epoch). Blocks."""
        return sum(_remove_if_stale(folder, before) for folder in self.root.iterdir())


@asynccontextmanager
async def held_scratch(store: ObjectStore, kind: str) -> AsyncIterator[Path]:
    """A scratch folder of this block's own, however long it takes; what a crash leaves is swept, as nobody holds it."""
    name = f"{kind}-{uuid4().hex}"
    folder = await settled(store.scratch, name)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        await store.drop_scratch(name)
        os.close(lock)


def _remove_if_stale(folder: Path, before: float) -> int:
    try:
        newest = max((item.lstat().st_mtime for item in [folder, *folder.rglob("*")]), default=0.0)
    except FileNotFoundError:
        return 0
    if newest >= before:
        return 0
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return 0
    finally:
        os.close(lock)
    return 1

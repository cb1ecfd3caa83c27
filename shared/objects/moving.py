"""All objects of one store into another: every byte checked, what is there alike left alone, safe to do again.

Memory is bounded by that of a read and an upload, the disk by one blob in the target's scratch folder (none when the
source is a folder on its disk). Used by `stepway objects migrate` and by a restore into a bucket.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shared.objects.blocking import settled
from shared.objects.fetching import check_room, fetch
from shared.objects.s3 import S3Store
from shared.objects.store import ObjectInfo, ObjectNotFound, ObjectStore, WrongDigest, blob_key

SCRATCH = "moving"


@dataclass(slots=True)
class Moved:
    """How far it is. `wrong` are the keys of blobs whose bytes are not those of their digest."""

    objects: int = 0
    bytes: int = 0
    total_objects: int = 0
    total_bytes: int = 0
    copied: int = 0
    copied_bytes: int = 0
    wrong: list[str] = field(default_factory=list)


async def move_all(
    source: ObjectStore,
    target: ObjectStore,
    *,
    dry: bool = False,
    on_progress: Callable[[Moved], None] = lambda _: None,
) -> Moved:
    """Copy what the target lacks; the source stays. Blobs that are damaged at the source are counted, not copied.

    With `dry` nothing is copied: `copied` is what would be. Nobody may write to the source meanwhile.
    """
    moved = Moved()
    async for info in source.list():
        moved.total_objects += 1
        moved.total_bytes += info.size
    async for info in source.list():
        if not await alike(source, target, info):
            if dry or await _copy(source, target, info):
                moved.copied += 1
                moved.copied_bytes += info.size
            else:
                moved.wrong.append(info.key)
        moved.objects += 1
        moved.bytes += info.size
        on_progress(moved)
    return moved


async def delete_all(source: ObjectStore, target: ObjectStore, on_progress: Callable[[int], None]) -> int:
    """Delete from the source what the target has alike: each is compared once more. How many went."""
    keys = [info async for info in source.list()]
    gone = 0
    for info in keys:
        if await alike(source, target, info):
            gone += await source.delete(info.key)
            on_progress(gone)
    return gone


async def alike(source: ObjectStore, target: ObjectStore, info: ObjectInfo) -> bool:
    """Whether the target has this very object. A blob is judged by its digest: noted at its upload, or of its file."""
    try:
        there = await target.stat(info.key)
    except ObjectNotFound:
        return False
    if there.size != info.size:
        return False
    sha256 = _sha256_of(info.key)
    if sha256 is None:
        return await _digest(source, info.key) == await _digest(target, info.key)
    if isinstance(target, S3Store):
        return await target.sha256_of(info.key) == sha256
    return await _digest(target, info.key) == sha256


async def _copy(source: ObjectStore, target: ObjectStore, info: ObjectInfo) -> bool:
    sha256 = _sha256_of(info.key)
    if isinstance(source, S3Store) and isinstance(target, S3Store) and source.place.endpoint == target.place.endpoint:
        noted = await source.sha256_of(info.key)
        if noted is not None and sha256 in (noted, None):
            await target.copy_from(source, info.key)
            return True
    if sha256 is None:
        await target.put(info.key, await source.get(info.key))
        return True
    folder = target.scratch(SCRATCH)
    part = folder / sha256
    try:
        local = source.local_path(info.key)
        if local is None or not isinstance(target, S3Store) or not await settled(_link, local, part):
            await check_room(folder, info.size)
            await fetch(source, sha256, part)
        await target.adopt(part, sha256)
    except WrongDigest:
        part.unlink(missing_ok=True)
        return False
    return True


def _link(source: Path, target: Path) -> bool:
    """A second name, which the target takes; False where that cannot be."""
    with contextlib.suppress(OSError):
        target.unlink(missing_ok=True)
        os.link(source, target)
        return True
    return False


async def _digest(store: ObjectStore, key: str) -> str:
    digest = hashlib.sha256()
    async for data in store.read(key):
        await asyncio.to_thread(digest.update, data)
    return digest.hexdigest()


def _sha256_of(key: str) -> str | None:
    """Of a blob; None of a document."""
    name = key.rpartition("/")[2]
    try:
        return name if blob_key(name) == key else None
    except ValueError:
        return None

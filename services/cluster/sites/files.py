"""A model's files where workers can read them: links into the object store where it is a directory, else copies."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from shared.contracts.models import Manifest, ModelFile
from shared.jobs.outcomes import Permanent
from shared.objects.blocking import settled
from shared.objects.fetching import check_room, fetch
from shared.objects.store import ObjectNotFound, ObjectStore, WrongDigest, blob_key


async def bring(
    manifest: Manifest, folder: Path, objects: ObjectStore, on_progress: Callable[[float | None, str], None]
) -> None:
    """Put every file of the manifest below `folder`; what is there already, whole, is left. Only the owner may read it.

    Raises `Permanent` where the disk has no room for what must be copied from a store in another place.
    """

    def told(size: int, file: ModelFile) -> None:
        on_progress(100 * size / max(manifest.size, 1), f"{file.path}")

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    places = [(file, _target(folder, file.path), objects.local_path(blob_key(file.sha256))) for file in manifest.files]
    there = [await asyncio.to_thread(_is_there, target, file, source) for file, target, source in places]
    coming = [file.size for (file, _, source), found in zip(places, there, strict=True) if source is None and not found]
    await check_room(folder, sum(coming))
    done = 0
    for (file, target, _), found in zip(places, there, strict=True):
        if not found:
            await _place(file, target, objects, partial(_onwards, told, done, file))
        done += file.size
        told(done, file)


def _target(folder: Path, path: str) -> Path:
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or PurePosixPath(path).is_absolute():
        raise Permanent("unsafe_path", "A file of the model has a path that leads out of its folder.")
    return folder.joinpath(*parts)


def _is_there(target: Path, file: ModelFile, source: Path | None) -> bool:
    try:
        status = target.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    if source is not None and source.exists() and os.path.samestat(status, source.stat()):
        return True
    return status.st_size == file.size and _digest(target) == file.sha256


def _digest(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _onwards(told: Callable[[int, ModelFile], None], before: int, file: ModelFile, size: int) -> None:
    told(before + size, file)


async def _place(file: ModelFile, target: Path, objects: ObjectStore, on_bytes: Callable[[int], None]) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = target.with_name(target.name + ".partial")
    source = objects.local_path(blob_key(file.sha256))
    if source is not None:
        part.unlink(missing_ok=True)
        if await settled(_link, source, part):
            await asyncio.to_thread(part.replace, target)
            return
    try:
        await fetch(objects, file.sha256, part, on_bytes=on_bytes)
    except ObjectNotFound:
        raise Permanent("file_missing", "A file of the model is not in the object store.") from None
    except WrongDigest:
        raise Permanent("checksum_mismatch", f"{file.path} in the object store is not what was imported.") from None
    await asyncio.to_thread(part.replace, target)


def _link(source: Path, target: Path) -> bool:
    """A hard link; False where the store is on another file system."""
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise Permanent("file_missing", "A file of the model is not in the object store.") from error
    except OSError:
        return False
    return True


async def forget(folder: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

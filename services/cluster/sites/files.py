"""A model's files where workers can read them: links into the object store where it is a directory, else copies."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from shared.contracts.models import Manifest, ModelFile
from shared.jobs.outcomes import Permanent
from shared.objects.blocking import settled
from shared.objects.store import ObjectStore, blob_key

CHUNK = 4 * 1024 * 1024


async def bring(
    manifest: Manifest, folder: Path, objects: ObjectStore, on_progress: Callable[[float | None, str], None]
) -> None:
    """Put every file of the manifest below `folder`; what is there already, whole, is left. Only the owner may read it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    done = 0
    for file in manifest.files:
        target = _target(folder, file.path)
        if not await asyncio.to_thread(_is_there, target, file, objects.local_path(blob_key(file.sha256))):
            await _place(file, target, objects)
        done += file.size
        on_progress(100 * done / max(manifest.size, 1), f"{file.path}")


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


async def _place(file: ModelFile, target: Path, objects: ObjectStore) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    source = objects.local_path(blob_key(file.sha256))
    if source is not None and await settled(_link, source, partial):
        await asyncio.to_thread(partial.replace, target)
        return
    digest = hashlib.sha256()
    with partial.open("wb") as out:
        async for chunk in objects.read(blob_key(file.sha256), chunk=CHUNK):
            digest.update(chunk)
            await asyncio.to_thread(out.write, chunk)
    if digest.hexdigest() != file.sha256:
        partial.unlink(missing_ok=True)
        raise Permanent("checksum_mismatch", f"{file.path} in the object store is not what was imported.")
    await asyncio.to_thread(partial.replace, target)


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

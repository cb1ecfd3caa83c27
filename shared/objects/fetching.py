"""A blob brought into a local file: streamed, hashed on the way, gone on with after a cut. For stores that are elsewhere."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from shared.jobs.outcomes import Permanent
from shared.objects.blocking import settled
from shared.objects.durable import write_at
from shared.objects.store import ObjectStore, WrongDigest, blob_key

CHUNK = 4 * 1024 * 1024  # bytes
BATCH = 1024 * 1024  # bytes that a thread is given to hash: fewer cost more in handing on than in hashing
SPARE_BYTES = 256 * 1024 * 1024  # left free on the disk for everything else


async def fetch(
    objects: ObjectStore, sha256: str, target: Path, *, on_bytes: Callable[[int], None] | None = None
) -> int:
    """Bring the blob to the file `target`, going on with what is there; its size in bytes. Only the owner may read it.

    Raises `WrongDigest` when the stored bytes are not those of the digest; the file is gone then. `ObjectNotFound` and
    a cancellation leave it for another try.
    """
    descriptor = await settled(os.open, target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        digest = hashlib.sha256()
        start = await _hashed(descriptor, digest)
        size = await _append(objects, sha256, descriptor, start, digest, on_bytes)
        if digest.hexdigest() == sha256:
            return size
        if start:  # what was there may be at fault
            await settled(os.ftruncate, descriptor, 0)
            digest = hashlib.sha256()
            size = await _append(objects, sha256, descriptor, 0, digest, on_bytes)
            if digest.hexdigest() == sha256:
                return size
        target.unlink(missing_ok=True)
        raise WrongDigest("the stored bytes are not those of the digest")
    finally:
        os.close(descriptor)


async def fetch_head(objects: ObjectStore, sha256: str, size: int, target: Path, head: int) -> None:
    """Bring the first `head` bytes only; the file has the blob's size, and a hole where the rest would be."""
    descriptor = await settled(os.open, target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        at = 0
        async for data in objects.read(blob_key(sha256), length=head, chunk=CHUNK):
            await settled(write_at, descriptor, memoryview(data), at)
            at += len(data)
        await settled(os.ftruncate, descriptor, size)
    finally:
        os.close(descriptor)


async def check_room(folder: Path, needed: int) -> None:
    """Raises `Permanent` when the disk of the folder does not hold so many bytes more."""
    free = (await settled(shutil.disk_usage, folder)).free - SPARE_BYTES
    if needed > free:
        raise Permanent("insufficient_disk", f"{needed} bytes are needed in {folder} and {max(0, free)} are free.")


async def _append(
    objects: ObjectStore, sha256: str, descriptor: int, start: int, digest: "hashlib._Hash",
    on_bytes: Callable[[int], None] | None,
) -> int:  # fmt: skip
    """While one thread receives and writes a batch, another one hashes the batch before."""
    loop = asyncio.get_running_loop()
    at, held = start, 0
    batch: list[bytes] = []
    hashing: Future[None] | None = None

    def take(data: bytes) -> None:
        nonlocal at, held
        write_at(descriptor, memoryview(data), at)
        at += len(data)
        batch.append(data)
        held += len(data)
        if held >= BATCH:
            hand_on()
            if on_bytes:
                loop.call_soon_threadsafe(on_bytes, at)

    def hand_on() -> None:
        nonlocal batch, held, hashing
        if hashing is not None:
            hashing.result()
        hashing = hasher.submit(_hash, digest, batch)
        batch, held = [], 0

    with ThreadPoolExecutor(1) as hasher:  # whose end waits for the last batch, which takes a millisecond
        await objects.pour(blob_key(sha256), take, start=start)
        hand_on()
    if on_bytes:
        on_bytes(at)
    return at


def _hash(digest: "hashlib._Hash", batch: list[bytes]) -> None:
    for data in batch:
        digest.update(data)


async def _hashed(descriptor: int, digest: "hashlib._Hash") -> int:
    """Hash what the file has; how many bytes that is."""
    at = 0
    while data := await settled(os.pread, descriptor, CHUNK, at):
        await settled(digest.update, data)
        at += len(data)
    return at

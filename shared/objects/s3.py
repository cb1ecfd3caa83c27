"""The object store that is a bucket of MinIO or of any other S3. The rules are those of `shared.objects.store`.

    <prefix>blobs/ab/abcd…        content; its sha256 is also in the object's metadata
    <prefix>manifests/<d>.json    small documents

A blob appears when the last of its parts is there and the digest of them all is right; until then it is an unfinished
upload, which the next one of the same content goes on with (`s3_upload`). Readers stream (`s3_reading`). All requests are
blocking calls (`s3_bucket`) in a bounded number of threads. Scratch folders are on this machine's disk.
"""

import asyncio
import hashlib
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog

from shared.objects.blocking import Threads, settled
from shared.objects.durable import SLICE
from shared.objects.s3_bucket import PATIENCE, Bucket, S3Place
from shared.objects.s3_faults import Gone
from shared.objects.s3_reading import Reading
from shared.objects.s3_upload import Source, Uploads
from shared.objects.scratch import Scratch
from shared.objects.store import (
    CHUNK,
    MAX_DOCUMENT,
    MAX_LINK,
    UNLIMITED,
    FileIdentity,
    InvalidKey,
    ObjectInfo,
    ObjectNotFound,
    SourceChanged,
    WrongDigest,
    blob_key,
    checked_key,
)

T = TypeVar("T")

THREADS = 16
UPLOAD_IDLE = 3600.0  # seconds in which no part came: only then an unfinished upload may be nobody's

log = structlog.get_logger(__name__)


class S3Store:
    """Objects in a bucket, for one event loop. `scratch` is the folder of the scratch folders.

    Passing faults are tried again for `patience` seconds.
    """

    def __init__(
        self, place: S3Place, scratch: Path, *, patience: float = PATIENCE, upload_idle: float = UPLOAD_IDLE
    ) -> None:
        self.place = place
        self._bucket = Bucket(place, patience)
        self._threads = Threads(THREADS)
        self._uploads = Uploads(self._bucket, self._threads)
        self._scratch = Scratch(scratch.absolute())
        self._upload_idle = upload_idle

    def __repr__(self) -> str:
        return f"S3Store({self.place.endpoint}, {self.place.url})"

    async def prepare(self) -> None:
        await self._ask(self._bucket.look)
        if not await self._ask(self._bucket.set_rule):
            log.info("no_rule_for_unfinished_uploads", bucket=self.place.bucket)

    async def adopt(self, file: Path, sha256: str) -> ObjectInfo:
        key = blob_key(sha256)
        with _regular(file) as (descriptor, before):

            def check() -> None:
                if FileIdentity.of(os.fstat(descriptor)) != FileIdentity.of(before):
                    raise WrongDigest("the file changed while it was stored")

            info = await self._stored(key, Source(descriptor, before.st_size, sha256, check), None)
        await settled(file.unlink)
        return info

    async def ingest(
        self, source: Path, *, expect: FileIdentity | None = None, on_bytes: Callable[[int], None] | None = None
    ) -> ObjectInfo:
        # O_NONBLOCK: opening a named pipe must not wait for a writer
        descriptor = await settled(os.open, source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode) or (expect and FileIdentity.of(before) != expect):
                raise SourceChanged("the file is not the one that was looked at before")

            def check() -> None:
                if FileIdentity.of(os.fstat(descriptor)) != FileIdentity.of(before):
                    raise SourceChanged("the file changed while it was copied")

            digest = await _digest(descriptor)
            try:
                return await self._stored(blob_key(digest), Source(descriptor, before.st_size, digest, check), on_bytes)
            except WrongDigest:
                raise SourceChanged("the file changed while it was copied") from None
        finally:
            os.close(descriptor)

    async def put(self, key: str, data: bytes) -> ObjectInfo:
        await self._ask(self._bucket.put, checked_key(key), data, hashlib.sha256(data).hexdigest(), settle=True)
        return await self._known(key, len(data))

    async def get(self, key: str, *, limit: int = MAX_DOCUMENT) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for data in self.read(key, length=limit + 1):
            parts.append(data)
            size += len(data)
        if size > limit:
            raise ValueError(f"the object {key} is larger than {limit} bytes")
        return b"".join(parts)

    async def read(
        self, key: str, *, start: int = 0, length: int | None = None, chunk: int = CHUNK
    ) -> AsyncIterator[bytes]:
        if start < 0 or (length is not None and length < 0):
            raise ValueError("a range begins at 0 or later and has no negative length")
        reading = Reading(self._bucket, checked_key(key), start, None if length is None else start + length)
        try:
            while data := await self._threads.run(reading.next, chunk, stop=reading.close, settle=False):
                yield data
        finally:
            reading.close()

    async def pour(self, key: str, take: Callable[[bytes], None], *, start: int = 0) -> None:
        reading = Reading(self._bucket, checked_key(key), start, None)
        try:
            await self._threads.run(reading.pour, take, stop=reading.close, settle=True)
        finally:
            reading.close()

    async def stat(self, key: str) -> ObjectInfo:
        try:
            found = await self._ask(self._bucket.stat, checked_key(key))
        except ObjectNotFound:
            raise ObjectNotFound(f"there is no object {key}") from None
        return ObjectInfo(key, found.size, found.modified)

    async def exists(self, key: str) -> bool:
        try:
            await self.stat(key)
        except ObjectNotFound:
            return False
        return True

    async def delete(self, key: str) -> bool:
        if not await self.exists(key):
            return False
        await self._ask(self._bucket.remove, key, settle=True)
        return True

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        after = ""
        while page := await self._ask(self._bucket.page, prefix, after):
            for one in page:
                if _is_ours(one.name):
                    yield ObjectInfo(one.name, one.size, one.modified)
            after = page[-1].name

    async def free_bytes(self) -> int:
        return UNLIMITED

    async def local_free_bytes(self) -> int:
        return await self._scratch.free_bytes()

    def scratch(self, name: str) -> Path:
        return self._scratch.folder(name)

    async def drop_scratch(self, name: str) -> None:
        await self._scratch.drop(name)

    async def sweep_scratch(self, older_than: float) -> int:
        """Unfinished uploads count as well: those to which no part came for so long, and not for an hour."""
        now = time.time()
        removed = await settled(self._scratch.sweep, now - older_than)
        before = now - max(older_than, self._upload_idle)
        for one in await self._ask(self._bucket.unfinished, ""):
            removed += await self._end_if_idle(one.name, one.upload, one.begun, before)
        return removed

    def local_path(self, key: str) -> Path | None:
        return None

    async def link(self, key: str, seconds: float) -> str | None:
        if not 1 <= seconds <= MAX_LINK:
            raise ValueError(f"a link lives for 1 to {MAX_LINK:g} seconds")
        return self._bucket.link(checked_key(key), seconds)

    async def copy_from(self, source: "S3Store", key: str) -> ObjectInfo:
        """Take over an object of another bucket of the same server: no byte of it comes here."""
        await self._ask(self._bucket.copy_here, source._bucket, checked_key(key), settle=True)
        return await self.stat(key)

    async def sha256_of(self, key: str) -> str | None:
        """The digest that was noted when the object was stored; None where another program stored it."""
        return (await self._ask(self._bucket.stat, checked_key(key))).sha256

    async def _stored(self, key: str, source: Source, on_bytes: Callable[[int], None] | None) -> ObjectInfo:
        if await self._uploads.stored(key, source):
            source.check()
            if on_bytes:
                on_bytes(source.size)
        else:
            await self._uploads.upload(key, source, on_bytes)
        return await self._known(key, source.size)

    async def _known(self, key: str, size: int) -> ObjectInfo:
        """Of what was just stored, even where somebody has deleted it since."""
        try:
            return await self.stat(key)
        except ObjectNotFound:
            return ObjectInfo(key, size, time.time())

    async def _end_if_idle(self, name: str, upload: str, begun: float, before: float) -> bool:
        if begun >= before:
            return False
        try:
            parts = await self._ask(self._bucket.parts, name, upload)
            if any(part.last_modified and part.last_modified.timestamp() >= before for part in parts.values()):
                return False
            await self._ask(self._bucket.abort, name, upload)
        except (Gone, ObjectNotFound):
            return False
        return True

    async def _ask(self, function: Callable[..., T], *args: Any, settle: bool = False) -> T:
        """What changes something is settled: else it could happen after what the caller does next."""
        stop = threading.Event()
        return await self._threads.run(self._bucket.attempt, stop, function, *args, stop=stop.set, settle=settle)


@contextmanager
def _regular(file: Path) -> Iterator[tuple[int, os.stat_result]]:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise ObjectNotFound("the file to store is not a regular file") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ObjectNotFound("the file to store is not a regular file")
        yield descriptor, status
    finally:
        os.close(descriptor)


async def _digest(descriptor: int) -> str:
    digest = hashlib.sha256()
    slices = _slices(descriptor)
    while data := await settled(next, slices, b""):
        await settled(digest.update, data)
        await asyncio.sleep(0)
    return digest.hexdigest()


def _slices(descriptor: int) -> Generator[bytes, None, None]:
    at = 0
    while data := os.pread(descriptor, SLICE, at):
        at += len(data)
        yield data


def _is_ours(name: str) -> bool:
    """Whether it can be an object of a store: others may keep theirs in the same bucket."""
    try:
        return bool(checked_key(name))
    except InvalidKey:
        return False

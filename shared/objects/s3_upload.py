"""A file on its way into a bucket: in parts, several at a time, taken up again after a crash, whole or not at all.

Each part goes with a digest that the server checks; the sha256 of all that was read is compared with the claimed one
before the object appears. An upload that was cut off lies unfinished at the server, under the blob's own name: whoever
uploads the same content next, here or elsewhere, goes on with it. Two at once may share it; whoever finds it gone looks
whether the blob is there.

Memory: `PARTS` buffers of one part, for all uploads of a store together, used again and again while any of them runs. A
part has 16 MiB, so 64 MiB in all; files of more than 156 GiB have larger parts, as there may be 10,000 (64 MiB parts for
500 GiB, and then 256 MiB in all).
"""

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from minio.datatypes import Part

from shared.objects.blocking import Threads, settled
from shared.objects.s3_bucket import Bucket
from shared.objects.s3_faults import Gone
from shared.objects.store import ObjectNotFound, SourceChanged, StoreUnavailable, WrongDigest

T = TypeVar("T")

PART = 16 * 1024 * 1024  # bytes; the least that S3 takes is 5 MiB
PARTS = 4  # on their way at a time
MOST = 10_000  # parts of one object
_ROUNDS = 5  # uploads that others may end before us


@dataclass(frozen=True, slots=True)
class Source:
    """An open regular file of `size` bytes, whose sha256 is claimed to be this. `check` raises when it has changed."""

    descriptor: int
    size: int
    sha256: str
    check: Callable[[], None]


def part_size(size: int) -> int:
    """Bytes of each part but the last: the same for the same file, so that an upload can be taken up again."""
    part = PART
    while part * MOST < size:
        part *= 2
    return part


class Buffers:
    """Memory for parts, kept from one to the next while any upload runs: to get it from the system costs as much as sending.

    Whoever takes one has a thread of the senders, so there are never more than those. Called from any thread.
    """

    def __init__(self) -> None:
        self._free: list[bytearray] = []
        self._users = 0
        self._lock = threading.Lock()

    @contextmanager
    def kept(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._free.clear()

    def take(self, size: int) -> bytearray:
        with self._lock:
            buffer = self._free.pop() if self._free else None
        return buffer if buffer is not None and len(buffer) == size else bytearray(size)

    def give(self, buffer: bytearray) -> None:
        """Nobody may use it any more."""
        with self._lock:
            if self._users:
                self._free.append(buffer)


class Uploads:
    """The uploads of one store. `upload` may run any number of times at once."""

    def __init__(self, bucket: Bucket, threads: Threads) -> None:
        self._bucket = bucket
        self._threads = threads
        self._senders = Threads(PARTS)
        self._buffers = Buffers()

    async def upload(self, name: str, source: Source, on_bytes: Callable[[int], None] | None) -> None:
        """Raises `WrongDigest` or what `source.check` raises, and leaves nothing then."""
        if source.size <= PART:
            await self._whole(name, source)
            if on_bytes:
                on_bytes(source.size)
            return
        for _ in range(_ROUNDS):
            try:
                with self._buffers.kept():
                    await _InParts(
                        self._bucket, self._threads, self._senders, self._buffers, name, source, on_bytes
                    ).run()
                return
            except Gone:
                if await self.stored(name, source):
                    return
        raise StoreUnavailable(f"Unfinished uploads to {self._bucket.place.url} vanish again and again.")

    async def stored(self, name: str, source: Source) -> bool:
        """Whether the object is there: of this size, and with the digest that was noted when its bytes were checked."""
        stop = threading.Event()

        def look() -> bool:
            found = self._bucket.attempt(stop, self._bucket.stat, name)
            return (found.size, found.sha256) == (source.size, source.sha256)

        try:
            return await self._threads.run(look, stop=stop.set, settle=False)
        except ObjectNotFound:
            return False

    async def _whole(self, name: str, source: Source) -> None:
        stop = threading.Event()

        def send() -> None:
            digest = hashlib.sha256()
            data = memoryview(bytearray(source.size))
            _read(source.descriptor, 0, data)
            digest.update(data)
            _verify(digest.hexdigest(), source)
            self._bucket.attempt(stop, self._bucket.put, name, data, source.sha256)

        await self._senders.run(send, stop=stop.set, settle=True)


class _InParts:
    """One upload, from the look for an unfinished one to its end."""

    def __init__(
        self, bucket: Bucket, threads: Threads, senders: Threads, buffers: Buffers, name: str, source: Source,
        on_bytes: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        self._bucket = bucket
        self._threads = threads
        self._senders = senders
        self._buffers = buffers
        self._name = name
        self._source = source
        self._on_bytes = on_bytes
        self._size = part_size(source.size)
        self._sent = 0
        self._parts: dict[int, Part] = {}
        self._stop = threading.Event()
        self._digest = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1)  # one thread: the parts are hashed in order

    async def run(self) -> None:
        upload, known = await self._ask(self._find, settle=False)
        pending: set[asyncio.Future[Part]] = set()
        try:
            for number, offset in enumerate(range(0, self._source.size, self._size), start=1):
                await self._senders.take()
                pending = self._reap(pending)
                pending.add(await self._next(upload, number, offset, known.get(number)))
            while pending:
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                pending = self._reap(pending)
            _verify(self._digest.hexdigest(), self._source)
            await self._ask(self._finish, upload)
        except (WrongDigest, SourceChanged):
            self._stop.set()
            await asyncio.wait(pending) if pending else None
            self._stop.clear()
            await self._ask(self._abort, upload)
            raise
        finally:
            self._stop.set()  # parts on their way end by themselves: they hold their own bytes, and harm nothing
            self._hasher.shutdown(wait=False)

    async def _next(self, upload: str, number: int, offset: int, known: Part | None) -> "asyncio.Future[Part]":
        """Read a part, and start to hash and to send it. The thread has been taken."""
        buffer = self._buffers.take(self._size)
        data = memoryview(buffer)[: min(self._size, self._source.size - offset)]
        try:
            await settled(_read, self._source.descriptor, offset, data)
            hashed = self._hasher.submit(self._digest.update, data)
        except BaseException:
            self._buffers.give(buffer)
            self._senders.give_back()
            raise

        def send() -> Part:
            try:
                return self._send(upload, number, data, known)
            finally:
                hashed.result()
                self._buffers.give(buffer)

        return self._senders.start(send)

    def _send(self, upload: str, number: int, data: memoryview, known: Part | None) -> Part:
        if known is not None and known.size == len(data) and known.etag == _md5(data):
            return known
        return self._bucket.attempt(self._stop, self._bucket.send, self._name, upload, number, data)

    def _reap(self, pending: "set[asyncio.Future[Part]]") -> "set[asyncio.Future[Part]]":
        """Take the parts that are done; raises what one of them raised."""
        done = {one for one in pending if one.done()}
        for one in done:
            part = one.result()
            self._parts[part.part_number] = part
            self._sent += part.size or 0
        if done and self._on_bytes:
            self._on_bytes(self._sent)
        return pending - done

    def _find(self) -> tuple[str, dict[int, Part]]:
        """The newest unfinished upload of this name with its parts, else a new one."""
        for one in self._bucket.attempt(self._stop, self._bucket.unfinished_of, self._name)[:1]:
            try:
                return one.upload, self._bucket.attempt(self._stop, self._bucket.parts, self._name, one.upload)
            except Gone:
                break
        return self._bucket.attempt(self._stop, self._bucket.begin, self._name, self._source.sha256), {}

    def _finish(self, upload: str) -> None:
        self._source.check()
        parts = [self._parts[number] for number in sorted(self._parts)]
        self._bucket.attempt(self._stop, self._bucket.finish, self._name, upload, parts)

    def _abort(self, upload: str) -> None:
        try:
            self._bucket.attempt(self._stop, self._bucket.abort, self._name, upload)
        except Gone:
            pass

    async def _ask(self, function: Callable[..., T], *args: object, settle: bool = True) -> T:
        return await self._threads.run(function, *args, stop=self._stop.set, settle=settle)


def _read(descriptor: int, offset: int, data: memoryview) -> None:
    """Fill `data` with the file's bytes from `offset` on."""
    at = 0
    while at < len(data):
        count = os.preadv(descriptor, [data[at:]], offset + at)
        if not count:
            raise SourceChanged("the file became shorter while it was read")
        at += count


def _verify(sha256: str, source: Source) -> None:
    source.check()
    if sha256 != source.sha256:
        raise WrongDigest("the bytes of the file do not have the sha256 that was said to be theirs")


def _md5(data: memoryview) -> str:
    """What S3 gives as the tag of a part that it does not encrypt; others are sent again."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()

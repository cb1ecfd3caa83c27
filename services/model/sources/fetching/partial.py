"""A file on its way: written and hashed in one pass beside the event loop, and found again after a crash.

Two buffers take turns: the network fills one while one thread hashes and another writes the other. Whole buffers go
straight to the disk, past the page cache where the file system allows it: nothing is left to write back at the end, and
a large model does not push everything else out of memory. From time to time a sync notes how far the bytes are safe;
after a power cut only those are trusted.
"""

import asyncio
import errno
import hashlib
import mmap
import os
import time
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ValidationError

from shared.objects.blocking import settled
from shared.objects.durable import write_at, write_whole

BUFFER = 2 * 1024 * 1024  # bytes handed to the threads at a time
SYNC_BYTES = 256 * 1024 * 1024
SYNC_SECONDS = 2.0
_READ = 1024 * 1024
_BLOCK = mmap.PAGESIZE  # what a write past the page cache begins at, in the file and in memory


class Note(BaseModel):
    """What is remembered beside a partial file. `synced` bytes are on the disk; the tag and date are the server's."""

    synced: int = 0
    etag: str | None = None
    modified: str | None = None


class PartialFile:
    """Use as `async with PartialFile(path, …) as partial`; leaving the block in any way keeps the file for later.

    `git_size` asks for git's blob hash as well, for content of that size.
    """

    def __init__(self, path: Path, *, git_size: int | None = None, trust_unsynced: bool = False) -> None:
        self.path = path
        self.note = Note()
        self.size = 0
        self._git_size = git_size
        self._trust_unsynced = trust_unsynced
        self._note_path = path.with_suffix(".note")
        self._descriptor = -1
        self._direct: int | None = None  # a descriptor that writes past the page cache
        # memory maps begin at a page, as such writes ask for, and cost nothing until they are filled
        self._buffer, self._other = (memoryview(mmap.mmap(-1, BUFFER)) for _ in "ab")
        self._filled = 0  # bytes in `_buffer`
        self._writing: asyncio.Task[None] | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._synced_at = time.monotonic()
        self._reset_hashes()

    async def __aenter__(self) -> "PartialFile":
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o600)
        try:
            self._direct = _open_direct(self.path)
            await self._resume()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._drain()
            if kind is not None:
                await settled(self._sync, self.size)
        except OSError:
            # what ended the block says more than that the rest could not be saved
            if kind is None:
                raise
        finally:
            self._close()

    async def write(self, data: bytes) -> None:
        """Append. Waits only while both buffers are full. Raises OSError when the disk is full."""
        left = memoryview(data)
        while left:
            # after an odd end the next buffer is cut short, so that all after it begin at a block again
            count = min(len(left), BUFFER - self.size % _BLOCK - self._filled)
            self._buffer[self._filled : self._filled + count] = left[:count]
            self._filled += count
            left = left[count:]
            if self._filled + self.size % _BLOCK == BUFFER:
                await self._flush()

    async def restart(self, note: Note | None = None) -> None:
        """Begin again with an empty file."""
        await self._drain()
        self._filled = 0
        self.size = 0
        self.note = note or Note()
        self._reset_hashes()
        os.ftruncate(self._descriptor, 0)
        # the next sync writes it; until then nothing is trusted
        self._note_path.unlink(missing_ok=True)

    async def flush(self) -> int:
        """Everything is written and hashed; the size."""
        await self._flush()
        await self._wait(self._writing)
        return self.size

    async def digests(self) -> tuple[str, str | None]:
        """The sha256, and git's hash if it was asked for."""
        await self.flush()
        return self._sha256.hexdigest(), self._git.hexdigest() if self._git else None

    def remove(self) -> None:
        """Forget the file: its bytes are wrong."""
        self.path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)

    def _reset_hashes(self) -> None:
        self._sha256 = hashlib.sha256()
        self._git = None
        if self._git_size is not None:
            # git's name for the content, not a protection
            self._git = hashlib.sha1(b"blob %d\0" % self._git_size, usedforsecurity=False)

    async def _resume(self) -> None:
        try:
            self.note = Note.model_validate_json(self._note_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            self.note = Note()
        there = os.fstat(self._descriptor).st_size
        trusted = there if self._trust_unsynced else min(there, self.note.synced)
        while self.size < trusted:
            count = await settled(self._rehash, min(_READ * 8, trusted - self.size))
            if not count:
                break
            self.size += count
        os.ftruncate(self._descriptor, self.size)

    def _rehash(self, length: int) -> int:
        done = 0
        while done < length:
            data = os.pread(self._descriptor, min(_READ, length - done), self.size + done)
            if not data:
                break
            self._hash(data)
            done += len(data)
        return done

    def _hash(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        if self._git:
            self._git.update(data)

    async def _flush(self) -> None:
        await self._wait(self._writing)
        due = time.monotonic() - self._synced_at > SYNC_SECONDS or self.size - self.note.synced > SYNC_BYTES
        if due and (self._syncing is None or self._syncing.done()):
            await self._wait(self._syncing)
            self._synced_at = time.monotonic()
            self._syncing = asyncio.ensure_future(settled(self._sync, self.size))
        if self._filled:
            self._writing = asyncio.ensure_future(self._store(*self._take()))

    def _take(self) -> tuple[memoryview, int]:
        """What has been filled and its place in the file; the other buffer is the one to fill now."""
        data, start = self._buffer[: self._filled], self.size
        self.size += self._filled
        self._buffer, self._other, self._filled = self._other, self._buffer, 0
        return data, start

    async def _store(self, data: memoryview, start: int) -> None:
        hashing = asyncio.ensure_future(settled(self._hash, data))
        try:
            await settled(self._put, data, start)
        finally:
            await hashing  # until then the buffer is not filled anew

    def _put(self, data: memoryview, start: int) -> None:
        done = 0
        if self._direct is not None and len(data) == BUFFER and start % _BLOCK == 0:
            try:
                done = os.pwrite(self._direct, data, start)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise  # else the file system wants something else: the page cache does
        write_at(self._descriptor, data[done:], start + done)

    def _sync(self, size: int) -> None:
        os.fdatasync(self._descriptor)
        self.note.synced = size
        write_whole(self._note_path, self.note.model_dump_json().encode(), self._note_path.with_suffix(".new"))

    async def _drain(self) -> None:
        """Let the threads end, whatever they met; what is in the buffer is lost unless it can be written."""
        faults = []
        for task in (self._writing, self._syncing):
            if task is not None:
                await asyncio.wait([task])
                faults.append(task.exception())
        if self._filled and not any(faults):
            await self._store(*self._take())
        self._writing = self._syncing = None

    def _close(self) -> None:
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)

    @staticmethod
    async def _wait(task: "asyncio.Task[None] | None") -> None:
        """Wait without cancelling it: its thread could not be stopped."""
        if task is not None:
            await asyncio.shield(task)


def _open_direct(path: Path) -> int | None:
    """A descriptor whose writes go past the page cache; None where the system or the file system has no such thing."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return os.open(path, os.O_WRONLY | direct | os.O_NOFOLLOW | os.O_CLOEXEC) if direct else None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None

"""A file on its way: written and hashed in one pass beside the event loop, and found again after a crash.

Two buffers take turns, so that the network fills one while a thread hashes and writes the other. A second thread syncs
from time to time and notes how far the bytes are safe; after a power cut only those are trusted.
"""

import asyncio
import hashlib
import os
import time
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ValidationError

from shared.objects.blocking import settled
from shared.objects.durable import write_all, write_whole

BUFFER = 1024 * 1024  # bytes handed to the thread at a time
SYNC_BYTES = 256 * 1024 * 1024
SYNC_SECONDS = 2.0
_READ = 1024 * 1024
_SLICE = 256 * 1024  # written while it is still in the processor's cache from being hashed


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
        self._buffer = bytearray()
        self._writing: asyncio.Task[None] | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._synced_at = time.monotonic()
        self._reset_hashes()

    async def __aenter__(self) -> "PartialFile":
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o600)
        try:
            await self._resume()
        except BaseException:
            os.close(self._descriptor)
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
            os.close(self._descriptor)

    async def write(self, data: bytes) -> None:
        """Append. Waits only while both buffers are full. Raises OSError when the disk is full."""
        self._buffer += data
        if len(self._buffer) >= BUFFER:
            await self._flush()

    async def restart(self, note: Note | None = None) -> None:
        """Begin again with an empty file."""
        await self._drain()
        self._buffer.clear()
        self.size = 0
        self.note = note or Note()
        self._reset_hashes()
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
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
        os.lseek(self._descriptor, self.size, os.SEEK_SET)

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
        data, self._buffer = self._buffer, bytearray()
        if data:
            self.size += len(data)
            self._writing = asyncio.ensure_future(settled(self._store, data))
        due = time.monotonic() - self._synced_at > SYNC_SECONDS or self.size - self.note.synced > SYNC_BYTES
        if due and (self._syncing is None or self._syncing.done()):
            await self._wait(self._syncing)
            await self._wait(self._writing)
            self._synced_at = time.monotonic()
            self._syncing = asyncio.ensure_future(settled(self._sync, self.size))

    def _store(self, data: bytearray) -> None:
        whole = memoryview(data)
        for start in range(0, len(whole), _SLICE):
            piece = whole[start : start + _SLICE]
            self._hash(piece)
            write_all(self._descriptor, piece)

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
        if self._buffer and not any(faults):
            data, self._buffer = self._buffer, bytearray()
            await settled(self._store, data)
            self.size += len(data)
        self._writing = self._syncing = None

    @staticmethod
    async def _wait(task: "asyncio.Task[None] | None") -> None:
        """Wait without cancelling it: its thread could not be stopped."""
        if task is not None:
            await asyncio.shield(task)

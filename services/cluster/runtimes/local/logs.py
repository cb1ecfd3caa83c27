"""Reads what `logfile` wrote: the latest lines of some workers in the order of their times, and new ones as they come."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from pathlib import Path

from services.cluster.runtimes.base import LogLine
from services.cluster.runtimes.local.logfile import MAX_LINE, NAME
from services.cluster.runtimes.local.store import Store, WorkerFolder

_POLL = 0.2
_MAX_TAIL = 10_000
_LINE_GUESS = 160  # bytes; how far from the end the reading begins
_CHUNK = 1024 * 1024


def latest(workers: Iterable[WorkerFolder], tail: int) -> list[LogLine]:
    """At most `tail` lines (up to 10,000) of these workers together, oldest first."""
    tail = max(0, min(tail, _MAX_TAIL))
    lines = [line for worker in workers for line in _tail(worker, tail)]
    lines.sort(key=lambda line: line.time)
    return lines[len(lines) - min(tail, len(lines)) :]


async def follow(store: Store, endpoint_id: str, ordinal: int | None, tail: int) -> AsyncIterator[LogLine]:
    """The latest lines, then new ones, until the endpoint is gone. Workers that come later are followed too."""
    cursors: dict[int, _Cursor] = {}

    def advance() -> list[LogLine] | None:
        intent = store.intent(endpoint_id)
        if intent is None or intent.removed:
            return None
        found = []
        for worker in selected(store, endpoint_id, ordinal):
            if worker.ordinal not in cursors:
                cursors[worker.ordinal] = _Cursor(worker)
            found += cursors[worker.ordinal].read()
        return sorted(found, key=lambda line: line.time)

    def begin() -> list[LogLine]:
        workers = selected(store, endpoint_id, ordinal)
        for worker in workers:
            cursors[worker.ordinal] = _Cursor(worker, at_end=True)
        return latest(workers, tail)

    store.existing(endpoint_id)
    lines: list[LogLine] | None = await asyncio.to_thread(begin)
    while lines is not None:
        for line in lines:
            yield line
        if not lines:
            await asyncio.sleep(_POLL)
        lines = await asyncio.to_thread(advance)


def selected(store: Store, endpoint_id: str, ordinal: int | None) -> list[WorkerFolder]:
    return [worker for worker in store.workers(endpoint_id) if ordinal is None or worker.ordinal == ordinal]


def _tail(worker: WorkerFolder, count: int) -> list[LogLine]:
    """The last lines of the file, and of the one before the cut when the file has too few."""
    lines: list[LogLine] = []
    for name in (NAME, f"{NAME}.1"):
        missing = count - len(lines)
        if missing > 0:
            lines = _last_lines(worker, worker.path / name, missing) + lines
    return lines


def _last_lines(worker: WorkerFolder, path: Path, count: int) -> list[LogLine]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            wanted = count * _LINE_GUESS
            while True:
                start = max(0, size - wanted)
                file.seek(start)
                raw = file.read(size - start).split(b"\n")
                complete = raw if start == 0 else raw[1:]
                if start == 0 or len(complete) > count:
                    break
                wanted *= 4
    except OSError:
        return []
    return [line for text in complete[:-1][-count:] if (line := _parse(worker.id, text)) is not None]


class _Cursor:
    """A place in a log that survives the file's cutting."""

    def __init__(self, worker: WorkerFolder, *, at_end: bool = False) -> None:
        self._worker = worker
        self._path = worker.path / NAME
        self._pending = b""
        self._inode, size = self._look()
        self._offset = size if at_end else 0

    def read(self) -> list[LogLine]:
        inode, size = self._look()
        data = b""
        if inode != self._inode:
            data = self._from(self._path.with_name(f"{NAME}.1"), self._offset) if self._inode else b""
            self._inode, self._offset = inode, 0
        if inode and size > self._offset:
            more = self._from(self._path, self._offset)
            self._offset += len(more)
            data += more
        *lines, self._pending = (self._pending + data).split(b"\n")
        self._pending = self._pending[-2 * MAX_LINE :]
        return [line for text in lines if (line := _parse(self._worker.id, text)) is not None]

    def _look(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_size

    def _from(self, path: Path, offset: int) -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(_CHUNK)
        except OSError:
            return b""


def _parse(worker: str, raw: bytes) -> LogLine | None:
    stamp, _, text = raw.decode("utf-8", "replace").partition(" ")
    try:
        return LogLine(worker=worker, time=datetime.fromisoformat(stamp), text=text)
    except ValueError:
        return None

"""The scratch folder of one fetch: partial files, and a journal of the files that are done.

It survives a crash, and the next attempt goes on in it. It is held by a lock, so that an attempt that was thought dead
and wakes up never shares it: a second one at the same time gets a folder of its own.
"""

import fcntl
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ValidationError

from services.model.sources.base import SourceContext
from shared.contracts.models import ModelFile
from shared.jobs.outcomes import Retry
from shared.objects import blob_key

_RIVALS = 8  # fetches of the same thing at the same time


class _Line(BaseModel):
    name: str
    file: ModelFile


class Workspace:
    """A held scratch folder. Names that callers choose are hashed: a hostile path never becomes a file name."""

    def __init__(self, context: SourceContext, folder: Path) -> None:
        self._objects = context.objects
        self._claim = context.claim
        self._folder = folder
        self._journal = folder / "journal"
        self._done = _read_journal(self._journal)

    def file(self, name: str) -> Path:
        """Where the partial file of this name lies; the same at every attempt."""
        return self._folder / sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:40]

    async def done(self, name: str) -> ModelFile | None:
        """What was recorded under this name, if its blob is still stored."""
        known = self._done.get(name)
        if known is None:
            return None
        await self._claim([known], None)
        return known if await self._objects.exists(blob_key(known.sha256)) else None

    def record(self, name: str, file: ModelFile) -> None:
        """Remember a file that is stored. Not durable: what a power cut takes is fetched once more."""
        self._done[name] = file
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(_Line(name=name, file=file).model_dump_json() + "\n")


@asynccontextmanager
async def workspace(context: SourceContext, *identity: str | None) -> AsyncIterator[Workspace]:
    """Hold the scratch folder of a fetch that `identity` describes. It is removed when the block ends without error.

    Raises `Retry` when too many others fetch the same.
    """
    name = sha256(json.dumps(identity).encode()).hexdigest()[:32]
    for rival in range(_RIVALS):
        folder_name = f"{name}-{rival}"
        folder = context.objects.scratch(folder_name)
        lock = _try_lock(folder)
        if lock is None:
            continue
        try:
            yield Workspace(context, folder)
            await context.objects.drop_scratch(folder_name)
        finally:
            os.close(lock)
        return
    raise Retry("busy", "The same model is already being fetched several times.", after=30)


def _try_lock(folder: Path) -> int | None:
    try:
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None  # swept between its making and now
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == (folder / ".lock").stat().st_ino:
            os.utime(folder)
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def _read_journal(path: Path) -> dict[str, ModelFile]:
    found = {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    for entry in text.splitlines():
        try:
            line = _Line.model_validate_json(entry)
        except ValidationError:
            continue  # cut short by a crash
        found[line.name] = line.file
    return found

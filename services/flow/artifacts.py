"""Files of executions: their bytes are blobs of the object store, what they are is a row of the app's.

A `file` value names a row; what else it says is never trusted.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from services.flow.bounded import size_of
from shared.contracts.flows import ArtifactInfo
from shared.errors import Problem
from shared.jobs.outcomes import Permanent
from shared.objects.blocking import settled
from shared.objects.scratch import held_scratch
from shared.objects.store import ObjectNotFound, ObjectStore, blob_key
from stepway.tasks import TaskError

MAX_FILE = 256 * 1024**2  # bytes
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,100}/[a-z0-9!#$&^_.+-]{1,100}", re.ASCII)


class Keeper(Protocol):
    """Who keeps the rows."""

    async def keep_artifact(
        self, job_id: UUID, task: str, name: str, media_type: str, size: int, sha256: str
    ) -> UUID: ...

    async def artifact(self, job_id: UUID, artifact_id: UUID) -> ArtifactInfo:
        """Raises Permanent or Problem where the execution may not see it."""


class Artifacts:
    """The files of one task's attempt."""

    def __init__(self, store: ObjectStore, keeper: Keeper, job_id: UUID, task: str) -> None:
        self._store = store
        self._keeper = keeper
        self._job_id = job_id
        self._task = task

    async def save(self, name: str, media_type: str, content: bytes | AsyncIterator[bytes]) -> dict[str, Any]:
        """The value of a `file` output. An attempt that is repeated saves anew; equal bytes are stored once.

        Raises `TaskError` (`too_large`) above `MAX_FILE`, and what `content` raises.
        """
        name, media_type = file_name(name), media_type.lower()
        if not _MEDIA_TYPE.fullmatch(media_type):
            media_type = "application/octet-stream"
        async with held_scratch(self._store, "artifact") as folder:
            size, sha256 = await _written(folder / "content", content)
            await self._store.adopt(folder / "content", sha256)
        artifact_id = await self._keeper.keep_artifact(self._job_id, self._task, name, media_type, size, sha256)
        return {"artifact_id": str(artifact_id), "name": name, "media_type": media_type, "size": size, "sha256": sha256}

    async def open(self, file: Mapping[str, Any]) -> AsyncIterator[bytes]:
        async for chunk in self._content(await self._row(file)):
            yield chunk

    async def read(self, file: Mapping[str, Any], limit: int) -> bytes:
        row = await self._row(file)
        if row.size > limit:
            raise TaskError("too_large", f"The file {row.name} is larger than {size_of(limit)}, which is the limit.")
        return b"".join([chunk async for chunk in self._content(row)])

    async def _content(self, row: ArtifactInfo) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._store.read(blob_key(row.sha256)):
                yield chunk
        except ObjectNotFound:
            raise TaskError("file_gone", "The file's content is not kept any more.") from None

    async def _row(self, file: Mapping[str, Any]) -> ArtifactInfo:
        try:
            artifact_id = UUID(str(file["artifact_id"]))
        except (KeyError, ValueError, TypeError):
            raise TaskError("bad_file", "The value is not a file: it has no `artifact_id`.") from None
        try:
            return await self._keeper.artifact(self._job_id, artifact_id)
        except Permanent as refused:
            raise TaskError(refused.code, refused.message) from None
        except Problem as refused:
            raise TaskError(refused.code, refused.detail) from None


def file_name(name: str) -> str:
    """The last part of a path, without what a header or a terminal would stumble over; at most 120 characters."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(letter for letter in last if letter.isprintable() and letter not in '"<>:|?*').strip(" .")
    return kept[-120:] or "file"


async def _written(path: Path, content: bytes | AsyncIterator[bytes]) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    file = await settled(path.open, "wb")
    try:
        async for chunk in _chunks(content):
            size += len(chunk)
            if size > MAX_FILE:
                raise TaskError("too_large", f"The file is larger than {size_of(MAX_FILE)}, which is the limit.")
            digest.update(chunk)
            await settled(file.write, chunk)
    finally:
        await settled(file.close)
    return size, digest.hexdigest()


async def _chunks(content: bytes | AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if isinstance(content, bytes):
        yield content
    else:
        async for chunk in content:
            yield chunk

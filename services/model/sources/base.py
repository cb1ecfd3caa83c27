"""What every model source offers: look first (`check`), then bring the bytes (`fetch`). `registry` lists the sources."""

import asyncio
import errno
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import UUID

from pydantic import BaseModel, Field

from shared.contracts.models import ImportSpec, Manifest, ModelFile, Source
from shared.jobs.outcomes import Permanent
from shared.objects import FileIdentity, ObjectStore, manifest_key
from shared.objects.fetching import SPARE_BYTES
from shared.security.addresses import AddressPolicy

MAX_FILES = 10_000
MAX_INLINE_FILES = 100  # a plan stays below 64 KiB; a longer list of files becomes an object

T = TypeVar("T")
U = TypeVar("U")

Progress = Callable[[int, int | None], None]
"""Called with the bytes done and the bytes in all (None while unknown), often: whoever reports it thins it out."""


Claim = Callable[[Sequence[ModelFile], str | None], Awaitable[None]]
"""Keeps stored files, and the manifest of a digest, from being freed, whether they are there yet or not.

A source claims first and looks or stores then: what it has found without a claim may be freed with another model.
"""


class PlannedFile(BaseModel):
    """A file to bring. `path` is where it goes in the model; digests in lower-case hex, None while unknown."""

    path: str = Field(max_length=1024)
    size: int | None = Field(None, ge=0)
    sha256: str | None = None
    git_oid: str | None = None  # the sha1 that git gives the content
    origin: str | None = None  # where the source has it, if not under `path`
    identity: tuple[int, int, int, int] | None = None  # of a local file, as `FileIdentity`


class SourcePlan(BaseModel):
    """What a check found: enough to fetch the same bytes later. Fits a step's result (64 KiB) and holds no secret."""

    source: Source
    uri: str = Field(max_length=4096)
    revision: str | None = Field(None, max_length=512)  # as asked for
    commit: str | None = None  # what it meant at the check
    gated: bool = False
    license: str | None = Field(None, max_length=200)
    total_bytes: int | None = None
    file_count: int
    files: list[PlannedFile] = Field(default_factory=list)
    files_key: str | None = None  # the object that has the files, if they are too many for `files`
    etag: str | None = Field(None, max_length=512)
    archive: str | None = None  # zip or tar, when the one file is unpacked


class FileList(BaseModel):
    files: list[PlannedFile]


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a source may use. `token` is the secret of the user's credential; it shows in no repr."""

    objects: ObjectStore
    policy: AddressPolicy
    hf_endpoint: str
    roots: tuple[Path, ...]
    max_bytes: int
    claim: Claim
    token: str | None = field(default=None, repr=False)
    engine: str | None = None  # the engine that is to serve it (llama_cpp, vllm), if that is known


class ModelSource(Protocol):
    """One place that models come from.

    Both phases raise `Permanent` for what trying again cannot mend and `Retry` for a passing fault.
    """

    @property
    def kind(self) -> Source: ...

    def check_uri(self, uri: str) -> None:
        """Syntax only, offline. Raises `shared.security.uris.InvalidUri`."""
        ...

    async def check(self, spec: ImportSpec, context: SourceContext) -> SourcePlan:
        """Find out what there is and whether it may be had, without its bytes."""
        ...

    async def fetch(self, plan: SourcePlan, context: SourceContext, on_progress: Progress) -> Manifest:
        """Bring the files into the object store. Done again, it goes on where it was; a cancellation leaves that so."""
        ...


async def with_files(plan: SourcePlan, files: list[PlannedFile], model_id: UUID, context: SourceContext) -> SourcePlan:
    """The plan with its files, or with the key of an object that lists them when they are many."""
    if not files:
        raise Permanent("no_model_files", "There is no file of a model there.")
    if len(files) > MAX_FILES:
        raise Permanent("too_many_files", f"There are {len(files)} files; at most {MAX_FILES} are taken.")
    listing = FileList(files=files).model_dump_json(exclude_none=True).encode()
    if len(files) <= MAX_INLINE_FILES and len(listing) <= 32 * 1024:
        return plan.model_copy(update={"files": files, "file_count": len(files)})
    # the model's own, so that it can be freed with the model
    key = f"plans/{model_id}-{sha256(listing).hexdigest()}.json"
    await context.objects.put(key, listing)
    return plan.model_copy(update={"files_key": key, "file_count": len(files)})


async def files_of(plan: SourcePlan, context: SourceContext) -> list[PlannedFile]:
    if plan.files_key is None:
        return plan.files
    return FileList.model_validate_json(await context.objects.get(plan.files_key)).files


def check_total(total: int, context: SourceContext) -> None:
    """Refuse a model above the limit of this installation."""
    if total > context.max_bytes:
        raise Permanent("model_too_large", f"The model has {total} bytes; at most {context.max_bytes} are allowed.")


async def check_space(needed: int, context: SourceContext, *, here: int = 0) -> None:
    """Refuse to begin what the disk cannot hold. `needed` in bytes, beyond what is already there.

    `here` are those that lie in the scratch folder at a time, before they go to a store in another place.
    """
    for wanted, free in (
        (needed, await context.objects.free_bytes()),
        (here, await context.objects.local_free_bytes()),
    ):
        if wanted + SPARE_BYTES > free:
            raise Permanent(
                "insufficient_disk", f"{wanted} bytes are needed and {max(0, free - SPARE_BYTES)} are free."
            )


async def store_manifest(files: list[ModelFile], context: SourceContext) -> Manifest:
    """The manifest of the files, stored under its digest."""
    files = sorted(files, key=lambda file: file.path)
    digest = sha256("".join(f"{file.sha256}  {file.path}\n" for file in files).encode()).hexdigest()
    manifest = Manifest(digest=digest, files=files)
    await context.claim([], digest)
    await context.objects.put(manifest_key(digest), manifest.model_dump_json().encode())
    return manifest


class Tally:
    """Progress of several files at a time as progress of the whole."""

    def __init__(self, on_progress: Progress, total: int | None) -> None:
        self._on_progress = on_progress
        self._total = total
        self._sizes: dict[str, int] = {}
        self._done = 0

    def at(self, path: str, size: int) -> None:
        """The file has `size` bytes now."""
        self._done += size - self._sizes.get(path, 0)
        self._sizes[path] = size
        self._on_progress(self._done, self._total)


async def at_a_time(count: int, work: Callable[[T], Awaitable[U]], items: Sequence[T]) -> list[U]:
    """The results in order, with `count` items at work at a time. The first fault stops the others and is raised."""
    gate = asyncio.Semaphore(count)

    async def one(item: T) -> U:
        async with gate:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as faults:
        raise faults.exceptions[0] from None
    return [task.result() for task in tasks]


def onwards(on_progress: Progress, before: int, total: int | None) -> Callable[[int], None]:
    """Progress of one file as progress of the whole, `before` bytes of which came earlier."""
    return lambda size: on_progress(before + size, total)


def check_token(context: SourceContext) -> None:
    """Refuse a secret that no HTTP header can carry, before a library quotes it in an error."""
    if context.token is not None and not re.fullmatch(r"[!-~]{1,4096}", context.token, re.ASCII):
        raise Permanent("credential_refused", "The credential has characters that no token has.")


@contextmanager
def disk_faults() -> Iterator[None]:
    """A full disk is no fault of ours, and goes on where it was once there is room again."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Permanent("insufficient_disk", "The disk is full.") from None


def identity_of(file: PlannedFile) -> FileIdentity | None:
    return FileIdentity(*file.identity) if file.identity else None

"""The interface of an object store and the rules for its keys. `directory` keeps objects in a folder, `s3` in a bucket.

Blobs are named by their content (`blobs/<first two hex digits>/<sha256>`); other objects are small documents, such as
`manifests/<digest>.json`. Callers never see where an object lies, except through `local_path`, which may say None.
"""

import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shared.jobs.outcomes import Permanent, Retry

CHUNK = 1024 * 1024  # bytes that a read yields at a time
MAX_DOCUMENT = 16 * 1024 * 1024  # bytes that `get` reads into memory
UNLIMITED = 2**62  # bytes that are free where nobody can tell
MAX_LINK = 3600.0  # seconds

_SEGMENT = r"[a-z0-9][a-z0-9_.-]{0,127}"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,7}}", re.ASCII)
_NAME = re.compile(_SEGMENT, re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_OURS = ("scratch", "incoming")  # folders of a store that hold no objects


class ObjectNotFound(Exception):
    """There is no object under this key."""


class InvalidKey(ValueError):
    """The key, scratch name or digest is not well formed."""


class SourceChanged(Exception):
    """A file or object changed while it was copied, or is not the one that was looked at before."""


class WrongDigest(Exception):
    """The bytes of a file do not have the digest that was claimed for them."""


class StoreUnavailable(Retry):
    """The store does not answer, or not now; it was asked several times. A job's step is tried again."""

    def __init__(self, message: str) -> None:
        super().__init__("objects_unavailable", message)


class StoreRefused(Permanent):
    """The store will not do it as things are set up: a key, a permission, a certificate, a bucket. Says which.

    `denied` where it is a permission.
    """

    def __init__(self, message: str, *, denied: bool = False) -> None:
        super().__init__("objects_refused", message)
        self.denied = denied


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object. `size` in bytes, `modified` in seconds since the epoch."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells that a local file is still the same: its place on the device, its size and its last change."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileIdentity":
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class ObjectStore(Protocol):
    """Every object appears whole or not at all, and is durable when the call that stores it returns.

    A store in another place raises `StoreUnavailable` and `StoreRefused` in every call.
    """

    async def prepare(self) -> None:
        """Look whether the store can be used, and set up what it needs; once, before anything else."""
        ...

    async def adopt(self, file: Path, sha256: str) -> ObjectInfo:
        """Make a finished local file a blob; the file is gone afterwards. The caller has computed its sha256.

        Two callers may adopt the same content at once: one blob results. Raises `ObjectNotFound` if there is no such
        regular file, `InvalidKey` for a malformed digest, OSError when the disk is full; a store that reads the bytes
        to send them raises `WrongDigest`, and keeps the file.
        """
        ...

    async def ingest(
        self, source: Path, *, expect: FileIdentity | None = None, on_bytes: Callable[[int], None] | None = None
    ) -> ObjectInfo:
        """Copy a local file into a blob, hashing on the way; the source stays. `on_bytes` gets the bytes copied so far.

        Raises `SourceChanged` if the file is not the one `expect` describes or changes meanwhile. Bytes that are in the
        store already may not be counted one by one.
        """
        ...

    async def put(self, key: str, data: bytes) -> ObjectInfo:
        """Store a small document under a key, in place of what was there."""
        ...

    async def get(self, key: str, *, limit: int = MAX_DOCUMENT) -> bytes:
        """A small document. Raises `ObjectNotFound`, and ValueError above `limit` bytes."""
        ...

    def read(self, key: str, *, start: int = 0, length: int | None = None, chunk: int = CHUNK) -> AsyncIterator[bytes]:
        """The bytes from `start`, at most `length` of them, in chunks. Raises `ObjectNotFound` at the first chunk.

        Raises `SourceChanged` where a connection was lost and the object is another one by now.
        """
        ...

    async def pour(self, key: str, take: Callable[[bytes], None], *, start: int = 0) -> None:
        """Call `take` with the bytes from `start` on, chunk after chunk, in a thread: the fastest way into a file.

        A cancellation waits until `take` is not called any more. Raises what `take` and `read` raise.
        """
        ...

    async def stat(self, key: str) -> ObjectInfo:
        """Raises `ObjectNotFound`."""
        ...

    async def exists(self, key: str) -> bool: ...

    async def delete(self, key: str) -> bool:
        """Whether there was something to delete. Who reads it from a folder goes on; from a bucket, it may end with
        `ObjectNotFound`.
        """
        ...

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects whose key begins with `prefix`, sorted by key."""
        ...

    async def free_bytes(self) -> int:
        """Bytes that can still be stored; `UNLIMITED` where nobody can tell."""
        ...

    async def local_free_bytes(self) -> int:
        """Bytes that the scratch folders can still take."""
        ...

    def scratch(self, name: str) -> Path:
        """A local folder for unfinished work that survives a crash, made if need be. The same name, the same folder."""
        ...

    async def drop_scratch(self, name: str) -> None:
        """Remove a scratch folder and what is in it."""
        ...

    async def sweep_scratch(self, older_than: float) -> int:
        """Remove unfinished work untouched for `older_than` seconds that nobody holds; how many things went.

        A folder is held while a process has an exclusive flock on its file `.lock`.
        """
        ...

    def local_path(self, key: str) -> Path | None:
        """The object's file where the store is on this machine (to map it into memory), else None. Read only."""
        ...

    async def link(self, key: str, seconds: float) -> str | None:
        """A URL by which anyone may read the object, for 1 to `MAX_LINK` seconds: a secret. None where there is none.

        It is made without a look whether the object is there.
        """
        ...


def blob_key(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise InvalidKey(f"{sha256[:80]!r} is not a sha256 in lower-case hex")
    return f"blobs/{sha256[:2]}/{sha256}"


def manifest_key(digest: str) -> str:
    if not _SHA256.fullmatch(digest):
        raise InvalidKey(f"{digest[:80]!r} is not a sha256 in lower-case hex")
    return f"manifests/{digest}.json"


def checked_key(key: str) -> str:
    """The key itself. Segments of lower-case letters, digits and `_.-` that begin with a letter or digit."""
    if not _KEY.fullmatch(key) or key.split("/", 1)[0] in _OURS:
        raise InvalidKey(f"{key[:80]!r} is not a key of an object")
    return key


def checked_name(name: str) -> str:
    """The name itself, when it is fit for a scratch folder: one segment of a key."""
    if not _NAME.fullmatch(name):
        raise InvalidKey(f"{name[:80]!r} is not a name for a scratch folder")
    return name

"""The stores that keep the one interface, as the tests open them, and what tests ask of any of them."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from shared.objects import DirectoryStore, ObjectStore
from shared.objects.s3 import S3Store
from tests.testbed.minio import Minio

DATA = os.urandom(20 * 1024 * 1024 + 17)  # more than one part of an upload
SHA256 = hashlib.sha256(DATA).hexdigest()

Open = Callable[[], ObjectStore]
"""One more view of the same store, as another process would have."""


def opener(kind: str, folder: Path, server: Callable[[], Minio]) -> Open:
    if kind == "directory":
        return lambda: DirectoryStore(folder / "objects")
    place = server().place(prefix="team/")
    return lambda: S3Store(place, folder / "objects" / "scratch")


async def read(store: ObjectStore, key: str, start: int = 0, length: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.read(key, start=start, length=length)])


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]

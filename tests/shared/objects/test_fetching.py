"""A blob brought into a local file: whole, gone on with, never wrong."""

import hashlib
from pathlib import Path

import pytest

from shared.jobs.outcomes import Permanent
from shared.objects import DirectoryStore, ObjectNotFound, WrongDigest, blob_key
from shared.objects.fetching import check_room, fetch, fetch_head
from tests.shared.objects.kinds import DATA, SHA256


@pytest.fixture
async def store(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "objects")
    (tmp_path / "source").write_bytes(DATA)
    await store.ingest(tmp_path / "source")
    return store


@pytest.mark.parametrize("there", [b"", DATA[:1_000_000], DATA, b"x" * 100, DATA + b"more"])
async def test_a_blob_is_brought_whatever_is_there(store: DirectoryStore, tmp_path: Path, there: bytes) -> None:
    target = tmp_path / "target"
    target.write_bytes(there)
    seen: list[int] = []
    assert await fetch(store, SHA256, target, on_bytes=seen.append) == len(DATA)
    assert target.read_bytes() == DATA
    assert not seen or seen[-1] == len(DATA)


async def test_a_new_file_is_only_its_owners(store: DirectoryStore, tmp_path: Path) -> None:
    await fetch(store, SHA256, tmp_path / "target")
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600


async def test_a_damaged_blob_leaves_nothing(store: DirectoryStore, tmp_path: Path) -> None:
    place = store.local_path(blob_key(SHA256))
    assert place is not None
    place.chmod(0o600)
    place.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(WrongDigest):
        await fetch(store, SHA256, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    with pytest.raises(ObjectNotFound):
        await fetch(store, hashlib.sha256(b"none").hexdigest(), tmp_path / "none")


async def test_of_a_head_the_size_is_right(store: DirectoryStore, tmp_path: Path) -> None:
    await fetch_head(store, SHA256, len(DATA), tmp_path / "head", 5_000_000)
    brought = (tmp_path / "head").read_bytes()
    assert len(brought) == len(DATA)
    assert brought[:5_000_000] == DATA[:5_000_000]
    assert not any(brought[5_000_000:])


async def test_no_room_is_said_before(tmp_path: Path) -> None:
    await check_room(tmp_path, 0)
    with pytest.raises(Permanent) as raised:
        await check_room(tmp_path, 2**60)
    assert raised.value.code == "insufficient_disk"

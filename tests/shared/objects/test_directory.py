"""The store that is a folder: whole or not there, durable, shared."""

import asyncio
import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.objects import (
    DirectoryStore,
    FileIdentity,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    SourceChanged,
    blob_key,
)

DATA = os.urandom(20 * 1024 * 1024 + 17)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "objects")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source"
    file.write_bytes(DATA)
    return file


async def _read(store: ObjectStore, key: str, start: int = 0, length: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.read(key, start=start, length=length)])


async def _keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


async def test_a_file_is_adopted_under_its_digest(store: DirectoryStore, tmp_path: Path) -> None:
    file = store.scratch("work") / "part"
    file.write_bytes(DATA)
    info = await store.adopt(file, SHA256)
    assert (info.key, info.size) == (blob_key(SHA256), len(DATA))
    assert not file.exists()
    place = store.local_path(info.key)
    assert place is not None
    assert place.stat().st_mode & 0o777 == 0o444
    assert await store.exists(info.key)
    assert await store.stat(info.key) == info


async def test_adoption_needs_a_regular_file(store: DirectoryStore, source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(source)
    for file in (link, tmp_path, tmp_path / "none"):
        with pytest.raises(ObjectNotFound):
            await store.adopt(file, SHA256)
    assert source.exists()


async def test_a_file_from_another_disk_is_copied(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def across(self: Path, target: Path) -> Path:
        if self == source:
            raise OSError(errno.EXDEV, "another device")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", across)
    await store.adopt(source, SHA256)
    assert await _read(store, blob_key(SHA256)) == DATA
    assert not source.exists()


async def test_ingest_copies_hashes_and_reports(store: DirectoryStore, source: Path) -> None:
    seen: list[int] = []
    info = await store.ingest(source, expect=FileIdentity.of(source.stat()), on_bytes=seen.append)
    assert info.key == blob_key(SHA256)
    assert seen[-1] == len(DATA)
    assert seen == sorted(seen)
    source.write_bytes(b"changed")
    assert await _read(store, info.key) == DATA


async def test_ingest_works_where_the_kernel_cannot_copy(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(errno.EXDEV, "not here")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert (await store.ingest(source)).key == blob_key(SHA256)


async def test_an_empty_file_is_a_blob_too(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    info = await store.ingest(tmp_path / "empty")
    assert info.key == blob_key(hashlib.sha256().hexdigest())
    assert await _read(store, info.key) == b""


async def test_a_source_that_changes_meanwhile_leaves_nothing(store: DirectoryStore, source: Path) -> None:
    def grow(done: int) -> None:
        with source.open("ab") as file:
            file.write(b"more")

    with pytest.raises(SourceChanged):
        await store.ingest(source, on_bytes=grow)
    before = FileIdentity.of(source.stat())
    source.write_bytes(b"other")
    with pytest.raises(SourceChanged):
        await store.ingest(source, expect=before)
    assert await _keys(store) == []
    assert not list((source.parent / "objects" / "incoming").iterdir())


async def test_a_cancelled_ingest_leaves_nothing(store: DirectoryStore, source: Path) -> None:
    started = asyncio.Event()
    task = asyncio.create_task(store.ingest(source, on_bytes=lambda done: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _keys(store) == []
    assert not list((source.parent / "objects" / "incoming").iterdir())


async def test_many_importers_of_one_blob_get_one_blob(store: DirectoryStore, source: Path, tmp_path: Path) -> None:
    other = DirectoryStore(tmp_path / "objects")
    infos: list[ObjectInfo] = await asyncio.gather(*(place.ingest(source) for place in (store, other) * 4))
    assert {info.key for info in infos} == {blob_key(SHA256)}
    assert await _read(store, blob_key(SHA256)) == DATA
    assert await _keys(store) == [blob_key(SHA256)]


async def test_a_blob_that_was_cut_short_is_mended(store: DirectoryStore, source: Path) -> None:
    info = await store.ingest(source)
    place = store.local_path(info.key)
    assert place is not None
    place.chmod(0o644)
    os.truncate(place, 100)
    await store.ingest(source)
    assert await _read(store, info.key) == DATA


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, None), (5, 10), (len(DATA) - 3, 100), (len(DATA) + 5, None), (0, 0), (1024 * 1024, 3 << 20)],
)
async def test_ranges(store: DirectoryStore, source: Path, start: int, length: int | None) -> None:
    info = await store.ingest(source)
    expected = DATA[start:] if length is None else DATA[start : start + length]
    assert await _read(store, info.key, start, length) == expected


async def test_a_reader_goes_on_after_a_delete(store: DirectoryStore, source: Path) -> None:
    info = await store.ingest(source)
    reader = store.read(info.key)
    first = await anext(reader)
    assert await store.delete(info.key)
    assert not await store.delete(info.key)
    assert first + b"".join([chunk async for chunk in reader]) == DATA
    with pytest.raises(ObjectNotFound):
        await anext(store.read(info.key))
    with pytest.raises(ObjectNotFound):
        await store.stat(info.key)


async def test_documents_are_replaced_whole_and_bounded(store: DirectoryStore) -> None:
    await store.put("manifests/x.json", b"one")
    await store.put("manifests/x.json", b"second")
    assert await store.get("manifests/x.json") == b"second"
    with pytest.raises(ValueError, match="larger"):
        await store.get("manifests/x.json", limit=5)
    with pytest.raises(ObjectNotFound):
        await store.get("manifests/y.json")
    # a folder is no object
    with pytest.raises(ObjectNotFound):
        await store.stat("manifests")


async def test_lists_are_sorted_and_leave_out_unfinished_work(store: DirectoryStore, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "f").write_bytes(b"%d" % number)
        await store.ingest(tmp_path / "f")
    await store.put("manifests/b.json", b"")
    await store.put("manifests/a.json", b"")
    (store.scratch("work") / "part").write_bytes(b"x")
    keys = await _keys(store)
    assert keys == sorted(keys)
    assert len(keys) == 7
    assert await _keys(store, "manifests/") == ["manifests/a.json", "manifests/b.json"]
    assert await _keys(store, "manifests/b") == ["manifests/b.json"]
    assert len(await _keys(store, "blobs/")) == 5
    assert await _keys(store, "none/") == []


async def test_links_in_the_store_are_not_followed(store: DirectoryStore, source: Path) -> None:
    await store.put("manifests/a.json", b"")
    place = store.local_path("manifests/link.json")
    assert place is not None
    place.symlink_to(source)
    with pytest.raises(OSError, match="symbolic"):
        await store.get("manifests/link.json")
    with pytest.raises(ObjectNotFound):
        await store.stat("manifests/link.json")


async def test_stale_scratch_goes_and_held_scratch_stays(store: DirectoryStore, tmp_path: Path) -> None:
    for name in ("old", "held", "new"):
        (store.scratch(name) / "part").write_bytes(b"x")
    (tmp_path / "objects" / "incoming" / "left").write_bytes(b"x")
    with (store.scratch("held") / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in ("old", "held"):
            for path in (*store.scratch(name).iterdir(), store.scratch(name)):
                os.utime(path, (1, 1))
        os.utime(tmp_path / "objects" / "incoming" / "left", (1, 1))
        assert await store.sweep_scratch(older_than=3600) == 2
    assert sorted(path.name for path in (tmp_path / "objects" / "scratch").iterdir()) == ["held", "new"]
    await store.drop_scratch("new")
    assert not (tmp_path / "objects" / "scratch" / "new").exists()
    assert await store.free_bytes() > 0


_KILLED = """
import asyncio, sys
from pathlib import Path
from shared.objects import DirectoryStore
asyncio.run(DirectoryStore(Path(sys.argv[1])).ingest(Path(sys.argv[2]), on_bytes=lambda done: print(done, flush=True)))
"""


async def test_kill_9_in_a_copy_leaves_no_half_blob(store: DirectoryStore, source: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _KILLED, str(tmp_path / "objects"), str(source)]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    for key in await _keys(store):
        assert await _read(store, key) == DATA
    assert (await store.ingest(source)).size == len(DATA)

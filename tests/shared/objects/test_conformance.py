"""What every store keeps, the folder and the bucket alike: the promises of `shared.objects.store.ObjectStore`."""

import asyncio
import errno
import fcntl
import hashlib
import os
import threading
from pathlib import Path

import pytest

from shared.objects import FileIdentity, InvalidKey, ObjectInfo, ObjectNotFound, ObjectStore, SourceChanged, blob_key
from tests.shared.objects.kinds import DATA, SHA256, Open, keys, opener, read
from tests.testbed.minio import Minio


@pytest.fixture(params=["directory", "s3"])
def open_one(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    def server() -> Minio:
        found: Minio = request.getfixturevalue("minio")
        return found

    return opener(request.param, tmp_path, server)


@pytest.fixture
def store(open_one: Open) -> ObjectStore:
    return open_one()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source"
    file.write_bytes(DATA)
    return file


async def test_it_can_be_prepared_again_and_again(store: ObjectStore) -> None:
    await store.prepare()
    await store.prepare()
    assert await keys(store) == []


async def test_a_file_is_adopted_under_its_digest(store: ObjectStore) -> None:
    file = store.scratch("work") / "part"
    file.write_bytes(DATA)
    info = await store.adopt(file, SHA256)
    assert (info.key, info.size) == (blob_key(SHA256), len(DATA))
    assert not file.exists()
    assert await store.exists(info.key)
    assert await store.stat(info.key) == info
    assert await read(store, info.key) == DATA


async def test_adoption_needs_a_regular_file(store: ObjectStore, source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(source)
    for file in (link, tmp_path, tmp_path / "none"):
        with pytest.raises(ObjectNotFound):
            await store.adopt(file, SHA256)
    with pytest.raises(InvalidKey):
        await store.adopt(source, SHA256.upper())
    assert source.exists()


async def test_ingest_copies_hashes_and_reports(store: ObjectStore, source: Path) -> None:
    seen: list[int] = []
    info = await store.ingest(source, expect=FileIdentity.of(source.stat()), on_bytes=seen.append)
    assert info.key == blob_key(SHA256)
    assert seen[-1] == len(DATA)
    assert seen == sorted(seen)
    source.write_bytes(b"changed")
    assert await read(store, info.key) == DATA


@pytest.mark.parametrize("size", [0, 1, 16 << 20, (16 << 20) + 1])
async def test_files_of_any_size_are_blobs(store: ObjectStore, tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(DATA[:size])
    info = await store.ingest(tmp_path / "file")
    assert info.key == blob_key(hashlib.sha256(DATA[:size]).hexdigest())
    assert info.size == size
    assert await read(store, info.key) == DATA[:size]


async def test_a_source_that_changes_meanwhile_leaves_nothing(store: ObjectStore, source: Path) -> None:
    def grow(done: int) -> None:
        with source.open("ab") as file:
            file.write(b"more")

    with pytest.raises(SourceChanged):
        await store.ingest(source, on_bytes=grow)
    before = FileIdentity.of(source.stat())
    source.write_bytes(b"other")
    with pytest.raises(SourceChanged):
        await store.ingest(source, expect=before)
    assert await keys(store) == []


async def test_a_cancelled_ingest_leaves_no_object(store: ObjectStore, source: Path) -> None:
    started = asyncio.Event()
    task = asyncio.create_task(store.ingest(source, on_bytes=lambda done: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for key in await keys(store):  # it may have been done just then
        assert await read(store, key) == DATA
    assert (await store.ingest(source)).size == len(DATA)


async def test_many_importers_of_one_blob_get_one_blob(open_one: Open, source: Path) -> None:
    stores = [open_one(), open_one()]
    infos: list[ObjectInfo] = await asyncio.gather(*(place.ingest(source) for place in stores * 4))
    assert {info.key for info in infos} == {blob_key(SHA256)}
    assert await read(stores[0], blob_key(SHA256)) == DATA
    assert await keys(stores[1]) == [blob_key(SHA256)]


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, None), (5, 10), (len(DATA) - 3, 100), (len(DATA) + 5, None), (0, 0), (1024 * 1024, 3 << 20)],
)
async def test_ranges(store: ObjectStore, source: Path, start: int, length: int | None) -> None:
    info = await store.ingest(source)
    expected = DATA[start:] if length is None else DATA[start : start + length]
    assert await read(store, info.key, start, length) == expected


async def test_a_range_of_what_is_not_there_is_not_found(store: ObjectStore) -> None:
    for length in (None, 0, 5):
        with pytest.raises(ObjectNotFound):
            await read(store, blob_key(SHA256), 0, length)


async def test_what_was_deleted_is_gone(store: ObjectStore, source: Path) -> None:
    info = await store.ingest(source)
    assert await store.delete(info.key)
    assert not await store.delete(info.key)
    assert not await store.exists(info.key)
    with pytest.raises(ObjectNotFound):
        await anext(store.read(info.key))
    with pytest.raises(ObjectNotFound):
        await store.stat(info.key)


async def test_documents_are_replaced_whole_and_bounded(store: ObjectStore) -> None:
    await store.put("manifests/x.json", b"one")
    await store.put("manifests/x.json", b"second")
    assert await store.get("manifests/x.json") == b"second"
    assert await store.get("manifests/x.json", limit=6) == b"second"
    with pytest.raises(ValueError, match="larger"):
        await store.get("manifests/x.json", limit=5)
    with pytest.raises(ObjectNotFound):
        await store.get("manifests/y.json")
    # a folder is no object
    with pytest.raises(ObjectNotFound):
        await store.stat("manifests")


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "A", "scratch/a", "incoming/a", "a b", "ä"])
async def test_what_is_no_key_is_refused(store: ObjectStore, key: str) -> None:
    for work in (store.put(key, b""), store.get(key), store.stat(key), store.delete(key), read(store, key)):
        with pytest.raises(InvalidKey):
            await work


async def test_lists_are_sorted_and_leave_out_unfinished_work(store: ObjectStore, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "f").write_bytes(b"%d" % number)
        await store.ingest(tmp_path / "f")
    for name in ("b.json", "a.json", "a/b.json", "a-b.json", "ab.json"):
        await store.put(f"manifests/{name}", b"")
    (store.scratch("work") / "part").write_bytes(b"x")
    found = await keys(store)
    assert found == sorted(found)
    assert len(found) == 10
    assert await keys(store, "manifests/b") == ["manifests/b.json"]
    assert await keys(store, "manifests/a/") == ["manifests/a/b.json"]
    assert await keys(store, "manifests/a") == sorted(
        f"manifests/{n}" for n in ("a-b.json", "a.json", "a/b.json", "ab.json")
    )
    assert len(await keys(store, "blobs/")) == 5
    assert await keys(store, "none/") == []


async def test_long_lists_come_whole(store: ObjectStore) -> None:
    names = sorted(f"plans/{number:04}.json" for number in range(1203))
    for start in range(0, len(names), 60):
        await asyncio.gather(*(store.put(name, b"") for name in names[start : start + 60]))
    assert await keys(store, "plans/") == names
    assert await keys(store, "plans/1") == [name for name in names if name.startswith("plans/1")]


async def test_stale_scratch_goes_and_held_scratch_stays(store: ObjectStore) -> None:
    for name in ("old", "held", "new"):
        (store.scratch(name) / "part").write_bytes(b"x")
    with (store.scratch("held") / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in ("old", "held"):
            for path in (*store.scratch(name).iterdir(), store.scratch(name)):
                os.utime(path, (1, 1))
        assert await store.sweep_scratch(older_than=3600) == 1
    assert (store.scratch("held") / "part").exists()
    assert not (store.scratch("old") / "part").exists()
    await store.drop_scratch("new")
    assert not list(store.scratch("new").iterdir())


async def test_there_is_room(store: ObjectStore) -> None:
    assert await store.free_bytes() > 0
    assert await store.local_free_bytes() > 0


async def test_a_reader_may_stop_early(store: ObjectStore, source: Path) -> None:
    info = await store.ingest(source)
    for _ in range(40):  # more than there are threads and connections
        reader = store.read(info.key, chunk=1000)
        assert await anext(reader) == DATA[:1000]
        await reader.aclose()  # type: ignore[attr-defined]  # an async generator
    assert await read(store, info.key) == DATA


async def test_an_object_is_poured_into_a_function(store: ObjectStore, source: Path) -> None:
    info = await store.ingest(source)
    taken: list[bytes] = []
    await store.pour(info.key, taken.append, start=1000)
    assert b"".join(taken) == DATA[1000:]

    calls: list[int] = []

    def full(data: bytes) -> None:
        calls.append(len(data))
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "the disk is full")

    with pytest.raises(OSError, match="full"):
        await store.pour(info.key, full)
    assert len(calls) == 3  # nothing after the piece that could not be taken
    with pytest.raises(ObjectNotFound):
        await store.pour("manifests/none.json", taken.append)


async def test_a_cancelled_pour_takes_nothing_more(store: ObjectStore, source: Path) -> None:
    info = await store.ingest(source)
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    taken: list[int] = []
    go_on = threading.Event()

    def take(data: bytes) -> None:
        taken.append(len(data))
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(30)

    task = asyncio.create_task(store.pour(info.key, take))
    await begun.wait()
    task.cancel()
    loop.call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(taken) == 1

"""The store that is a folder: what only it has. `test_conformance` has what every store keeps."""

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.objects import DirectoryStore, ObjectNotFound, blob_key
from tests.shared.objects.kinds import DATA, SHA256, keys, read


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "objects")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source"
    file.write_bytes(DATA)
    return file


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
    assert await read(store, blob_key(SHA256)) == DATA
    assert not source.exists()


async def test_ingest_works_where_the_kernel_cannot_copy(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(errno.EXDEV, "not here")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert (await store.ingest(source)).key == blob_key(SHA256)


async def test_what_fails_leaves_nothing_incoming(store: DirectoryStore, source: Path) -> None:
    started = asyncio.Event()
    task = asyncio.create_task(store.ingest(source, on_bytes=lambda done: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await keys(store) == []
    assert not list((source.parent / "objects" / "incoming").iterdir())


async def test_an_object_is_a_file_that_may_only_be_read(store: DirectoryStore, source: Path) -> None:
    info = await store.ingest(source)
    place = store.local_path(info.key)
    assert place is not None
    assert place.stat().st_mode & 0o777 == 0o444
    assert await store.link(info.key, 60) is None


async def test_a_reader_goes_on_after_a_delete(store: DirectoryStore, source: Path) -> None:
    info = await store.ingest(source)
    reader = store.read(info.key)
    first = await anext(reader)
    assert await store.delete(info.key)
    assert first + b"".join([chunk async for chunk in reader]) == DATA


async def test_a_blob_that_was_cut_short_is_mended(store: DirectoryStore, source: Path) -> None:
    info = await store.ingest(source)
    place = store.local_path(info.key)
    assert place is not None
    place.chmod(0o644)
    os.truncate(place, 100)
    await store.ingest(source)
    assert await read(store, info.key) == DATA


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
    for key in await keys(store):
        assert await read(store, key) == DATA
    assert (await store.ingest(source)).size == len(DATA)

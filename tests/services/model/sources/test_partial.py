"""A partial file trusts what was synced, and hashes as it goes."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from services.model.sources.fetching import partial as partial_module
from services.model.sources.fetching.partial import Note, PartialFile

DATA = os.urandom(7 * 1024 * 1024 + 3)


async def _fill(path: Path, data: bytes, step: int) -> None:
    async with PartialFile(path) as partial:
        await partial.restart(Note(etag='"1"'))
        for at in range(0, len(data), step):
            await partial.write(data[at : at + step])
        raise ConnectionError


@pytest.mark.parametrize("step", [1000, 65536, 3 * 1024 * 1024])
async def test_digests_are_those_of_the_bytes_in_one_go_and_in_two(tmp_path: Path, step: int) -> None:
    path = tmp_path / "part"
    with pytest.raises(ConnectionError):
        await _fill(path, DATA[:5_000_000], step)
    async with PartialFile(path, git_size=len(DATA)) as partial:
        assert (partial.size, partial.note.etag) == (5_000_000, '"1"')
        await partial.write(DATA[5_000_000:])
        sha256, git = await partial.digests()
    assert path.read_bytes() == DATA
    assert sha256 == hashlib.sha256(DATA).hexdigest()
    assert git == hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()


async def test_only_synced_bytes_are_trusted_unless_a_digest_will_tell(tmp_path: Path) -> None:
    path = tmp_path / "part"
    with pytest.raises(ConnectionError):
        await _fill(path, DATA[:1000], 1000)
    # what a power cut may leave behind
    with path.open("ab") as file:
        file.write(bytes(500))
    async with PartialFile(path, trust_unsynced=True) as partial:
        assert partial.size == 1500
    async with PartialFile(path) as partial:
        assert partial.size == 1000
    path.with_suffix(".note").write_text("{broken")
    async with PartialFile(path) as partial:
        assert partial.size == 0
    assert path.stat().st_size == 0


async def _fill_a_full_disk(path: Path) -> None:
    async with PartialFile(path) as partial:
        os.dup2(os.open("/dev/full", os.O_WRONLY), partial._descriptor)
        await partial.write(DATA)
        await partial.flush()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_a_full_disk_is_told_and_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        await _fill_a_full_disk(tmp_path / "part")


async def test_a_cancellation_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "part"
    started = asyncio.Event()

    async def work() -> None:
        async with PartialFile(path) as partial:
            await partial.write(DATA)
            started.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with PartialFile(path) as partial:
        assert partial.size == len(DATA)


@pytest.mark.parametrize("opens", [True, False])
async def test_a_disk_that_takes_no_direct_writes_gets_the_bytes_by_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: bool
) -> None:
    """Without care for blocks, a buffer begins at the file's second byte, which the kernel refuses (EINVAL)."""
    monkeypatch.setattr(partial_module, "_BLOCK", 1)
    if not opens:
        monkeypatch.setattr(partial_module, "_open_direct", lambda path: None)
    path = tmp_path / "part"
    async with PartialFile(path) as partial:
        await partial.write(DATA[:1])
        await partial.flush()
        await partial.write(DATA[1:])
        sha256, _ = await partial.digests()
    assert path.read_bytes() == DATA
    assert sha256 == hashlib.sha256(DATA).hexdigest()

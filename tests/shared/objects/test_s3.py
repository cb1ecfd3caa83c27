"""The store that is a bucket: what only it has. `test_conformance` has what every store keeps."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.jobs.driver import describe
from shared.objects import ObjectInfo, ObjectNotFound, SourceChanged, StoreUnavailable, WrongDigest, blob_key
from shared.objects.fetching import fetch
from shared.objects.s3 import S3Store
from shared.objects.s3_bucket import S3Place
from shared.objects.s3_upload import PART, Buffers, part_size
from tests.shared.objects.kinds import DATA, SHA256, keys, read
from tests.testbed.machine import need
from tests.testbed.minio import PASSWORD, Minio


@pytest.fixture
def place(minio: Minio) -> S3Place:
    return minio.place(prefix="team/")


@pytest.fixture
def store(place: S3Place, tmp_path: Path) -> S3Store:
    return S3Store(place, tmp_path / "scratch", upload_idle=0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source"
    file.write_bytes(DATA)
    return file


@pytest.fixture
def own_server() -> Iterator[Minio]:
    """A server that a test may kill."""
    need("minio")
    server = Minio()
    try:
        yield server
    finally:
        server.close()


def unfinished(minio: Minio, place: S3Place) -> list[str]:
    found = minio.client._list_multipart_uploads(place.bucket)
    return [upload.object_name for upload in found.uploads]


async def test_a_blob_says_its_digest(store: S3Store, place: S3Place, minio: Minio, source: Path) -> None:
    info = await store.ingest(source)
    assert await store.sha256_of(info.key) == SHA256
    found = minio.client.stat_object(place.bucket, f"team/{info.key}")
    assert found.metadata is not None
    assert found.metadata["x-amz-meta-sha256"] == SHA256
    small = await store.put("manifests/a.json", b"x")
    assert await store.sha256_of(small.key) == hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize("size", [100, len(DATA)])
async def test_bytes_that_are_not_what_was_claimed_are_refused(
    store: S3Store, place: S3Place, minio: Minio, tmp_path: Path, size: int
) -> None:
    file = tmp_path / "file"
    file.write_bytes(DATA[: size - 1] + bytes([DATA[size - 1] ^ 1]))
    with pytest.raises(WrongDigest):
        await store.adopt(file, hashlib.sha256(DATA[:size]).hexdigest())
    assert file.exists()
    assert await keys(store) == []
    assert unfinished(minio, place) == []


async def test_a_blob_of_the_wrong_size_is_mended(store: S3Store, place: S3Place, minio: Minio, source: Path) -> None:
    await asyncio.to_thread(minio.client._put_object, place.bucket, f"team/{blob_key(SHA256)}", b"short")
    await store.ingest(source)
    assert await read(store, blob_key(SHA256)) == DATA


async def test_a_byte_that_changes_on_its_way_is_found_and_sent_anew(
    place: S3Place, minio: Minio, tmp_path: Path, source: Path
) -> None:
    """Through a relay that changes one byte of the first body that has as many."""
    changed: list[int] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", minio.port)

        async def forward() -> None:
            passed = 0
            while data := await reader.read(1 << 16):
                if not changed and passed > 1 << 20:
                    changed.append(passed)
                    data = bytes([data[0] ^ 1]) + data[1:]
                passed += len(data)
                back.write(data)
                await back.drain()
            back.write_eof()

        async def answer() -> None:
            while data := await there.read(1 << 16):
                writer.write(data)
                await writer.drain()

        try:
            await asyncio.gather(forward(), answer())
        except OSError:
            pass  # the client is gone
        finally:
            back.close()
            writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        store = S3Store(replace(place, endpoint=f"http://127.0.0.1:{port}"), tmp_path / "scratch")
        await store.adopt(source, SHA256)
    finally:
        server.close()
    assert len(changed) == 1
    assert await read(S3Store(place, tmp_path / "scratch"), blob_key(SHA256)) == DATA


async def test_a_blob_that_changed_at_rest_is_found_when_it_is_brought(
    store: S3Store, place: S3Place, minio: Minio, source: Path, tmp_path: Path
) -> None:
    await store.ingest(source)
    other = DATA[:-1] + bytes([DATA[-1] ^ 1])
    await asyncio.to_thread(minio.client._put_object, place.bucket, f"team/{blob_key(SHA256)}", other)
    with pytest.raises(WrongDigest):
        await fetch(store, SHA256, tmp_path / "target")
    assert not (tmp_path / "target").exists()


async def test_a_large_blob_is_brought_whole(store: S3Store, tmp_path: Path) -> None:
    sha256 = large(tmp_path / "file", 50 << 20)
    await store.ingest(tmp_path / "file")
    (tmp_path / "target").write_bytes((tmp_path / "file").read_bytes()[: 20 << 20])
    seen: list[int] = []
    assert await fetch(store, sha256, tmp_path / "target", on_bytes=seen.append) == 50 << 20
    assert seen == sorted(seen)
    assert seen[-1] == 50 << 20
    assert (tmp_path / "target").read_bytes() == (tmp_path / "file").read_bytes()


async def test_others_in_the_bucket_are_not_seen(store: S3Store, place: S3Place, minio: Minio, tmp_path: Path) -> None:
    other = S3Store(replace(place, prefix="team2/"), tmp_path / "other")
    whole = S3Store(replace(place, prefix=""), tmp_path / "whole")
    for one in (store, other):
        await one.put("manifests/a.json", repr(one).encode())
    minio.client._put_object(place.bucket, "team/Not Ours", b"x")
    assert await keys(store) == ["manifests/a.json"]
    assert await store.get("manifests/a.json") == repr(store).encode()
    assert await store.delete("manifests/a.json")
    assert await keys(other) == ["manifests/a.json"]
    assert await keys(whole) == ["team2/manifests/a.json"]


_CHILD = """
import asyncio, sys, json
from pathlib import Path
from shared.objects.s3 import S3Store
from shared.objects.s3_bucket import S3Place
given = json.loads(sys.stdin.readline())
async def main():
    store = S3Store(S3Place(**given["place"]), Path(given["scratch"]))
    await store.ingest(Path(given["file"]), on_bytes=lambda done: print(done, flush=True))
asyncio.run(main())
"""


def child(place: S3Place, file: Path, scratch: Path, code: str = _CHILD) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    fields = {name: getattr(place, name) for name in ("endpoint", "bucket", "access_key", "secret_key", "prefix")}
    process.stdin.write(json.dumps({"place": fields, "file": str(file), "scratch": str(scratch)}).encode() + b"\n")
    process.stdin.flush()
    return process


def large(path: Path, size: int) -> str:
    """A file of random bytes; its sha256."""
    digest, block = hashlib.sha256(), os.urandom(1 << 20)
    with path.open("wb") as out:
        for number in range(size >> 20):
            data = number.to_bytes(8, "big") + block[8:]
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


async def test_an_upload_that_was_killed_goes_on_where_it_was(
    store: S3Store, place: S3Place, minio: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = large(tmp_path / "file", 200 << 20)
    process = child(place, tmp_path / "file", tmp_path / "scratch")
    assert process.stdout is not None
    assert int(process.stdout.readline()) > 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert await keys(store) == []
    name = f"team/{blob_key(sha256)}"
    (begun,) = minio.client._list_multipart_uploads(place.bucket, prefix=name).uploads
    assert begun.upload_id is not None
    there = {part.part_number for part in minio.client._list_parts(place.bucket, name, begun.upload_id).parts}
    assert there
    sent: list[int] = []
    send = store._bucket.send

    def watched(name: str, upload: str, number: int, data: memoryview) -> Any:
        sent.append(number)
        return send(name, upload, number, data)

    monkeypatch.setattr(store._bucket, "send", watched)
    await store.ingest(tmp_path / "file")
    count = -(-(200 << 20) // PART)
    assert sorted(sent) == sorted(set(range(1, count + 1)) - there)  # nothing twice
    assert (await store.stat(blob_key(sha256))).size == 200 << 20
    digest = hashlib.sha256()
    async for chunk in store.read(blob_key(sha256)):
        digest.update(chunk)
    assert digest.hexdigest() == sha256
    assert unfinished(minio, place) == []


async def test_a_part_of_an_unfinished_upload_that_is_not_ours_is_sent_anew(
    store: S3Store, place: S3Place, minio: Minio, source: Path
) -> None:
    name = f"team/{blob_key(SHA256)}"
    upload = minio.client._create_multipart_upload(place.bucket, name, {})
    minio.client._upload_part(place.bucket, name, b"x" * PART, None, upload, 1)
    minio.client._upload_part(place.bucket, name, b"x" * 100, None, upload, 7)
    await store.ingest(source)
    assert await read(store, blob_key(SHA256)) == DATA
    assert unfinished(minio, place) == []


async def test_processes_that_upload_the_same_at_once_make_one_blob(
    store: S3Store, place: S3Place, minio: Minio, tmp_path: Path
) -> None:
    sha256 = large(tmp_path / "file", 64 << 20)
    processes = [child(place, tmp_path / "file", tmp_path / f"scratch{number}") for number in range(3)]
    for process in processes:
        await asyncio.to_thread(process.communicate)
        assert process.returncode == 0
    assert await keys(store) == [blob_key(sha256)]
    assert await store.sha256_of(blob_key(sha256)) == sha256
    for upload in minio.client._list_multipart_uploads(place.bucket, prefix=f"team/{blob_key(sha256)}").uploads:
        pytest.fail(f"an unfinished upload is left: {upload}")


async def test_an_upload_that_others_ended_begins_anew(
    store: S3Store, place: S3Place, minio: Minio, tmp_path: Path
) -> None:
    sha256 = large(tmp_path / "file", 100 << 20)
    ended: list[str] = []

    def end(done: int) -> None:
        if not ended:
            name = f"team/{blob_key(sha256)}"
            for upload in minio.client._list_multipart_uploads(place.bucket, prefix=name).uploads:
                assert upload.upload_id is not None
                minio.client._abort_multipart_upload(place.bucket, name, upload.upload_id)
                ended.append(upload.upload_id)

    await store.ingest(tmp_path / "file", on_bytes=end)
    assert ended
    assert (await store.stat(blob_key(sha256))).size == 100 << 20


async def test_unfinished_uploads_are_swept_when_they_are_idle(
    store: S3Store, place: S3Place, minio: Minio, tmp_path: Path
) -> None:
    for name in (f"team/{blob_key(SHA256)}", "team2/other"):
        minio.client._create_multipart_upload(place.bucket, name, {})
    patient = S3Store(place, tmp_path / "other")
    assert await patient.sweep_scratch(older_than=0) == 0
    assert await store.sweep_scratch(older_than=3600) == 0
    assert await store.sweep_scratch(older_than=-60) == 1
    assert unfinished(minio, place) == ["team2/other"]


async def test_a_link_opens_one_object_for_a_while(store: S3Store, minio: Minio, source: Path) -> None:
    info = await store.ingest(source)
    link = await store.link(info.key, 60)
    assert link is not None
    async with httpx.AsyncClient() as client:
        assert (await client.get(link)).content == DATA
        other = link.replace(SHA256, hashlib.sha256(b"").hexdigest())
        assert (await client.get(other)).status_code == 403
        assert (await client.get(link.partition("?")[0])).status_code == 403
    for seconds in (0.0, 3601.0):
        with pytest.raises(ValueError, match="lives"):
            await store.link(info.key, seconds)


async def test_objects_are_copied_between_buckets_by_the_server(
    store: S3Store, minio: Minio, source: Path, tmp_path: Path
) -> None:
    info = await store.ingest(source)
    other = S3Store(minio.place(), tmp_path / "other")
    assert (await other.copy_from(store, info.key)).size == len(DATA)
    assert await read(other, info.key) == DATA
    assert await other.sha256_of(info.key) == SHA256
    with pytest.raises(ObjectNotFound):
        await other.copy_from(store, "manifests/none.json")


async def test_a_read_of_what_was_replaced_meanwhile_is_refused(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("plans/a.json", DATA)
    reader = store.read("plans/a.json")
    first = await anext(reader)
    reader.ag_frame.f_locals["reading"]._let_go()  # type: ignore[attr-defined]  # as if the connection were lost
    await store.put("plans/a.json", DATA[::-1])
    with pytest.raises(SourceChanged):
        await anext(reader)
    assert DATA.startswith(first)


async def test_a_server_that_comes_back_does_not_end_an_upload_or_a_read(own_server: Minio, tmp_path: Path) -> None:
    store = S3Store(own_server.place(), tmp_path / "scratch", patience=60)
    sha256 = large(tmp_path / "file", 160 << 20)
    restarts: list[asyncio.Task[None]] = []

    async def again() -> None:
        await asyncio.to_thread(own_server.kill)
        await asyncio.to_thread(own_server.restart)

    def on_bytes(done: int) -> None:
        if not restarts:
            restarts.append(asyncio.create_task(again()))

    await store.ingest(tmp_path / "file", on_bytes=on_bytes)
    await restarts[0]
    digest, read_bytes = hashlib.sha256(), 0
    async for chunk in store.read(blob_key(sha256)):
        digest.update(chunk)
        read_bytes += len(chunk)
        if len(restarts) == 1 and read_bytes > 40 << 20:
            restarts.append(asyncio.create_task(again()))
            await restarts[1]
    assert len(restarts) == 2
    assert digest.hexdigest() == sha256


async def test_a_server_that_stays_away_is_told_of_in_the_end(own_server: Minio, tmp_path: Path) -> None:
    store = S3Store(own_server.place(), tmp_path / "scratch", patience=1)
    file = tmp_path / "file"
    file.write_bytes(DATA)
    own_server.kill()
    for work in (store.ingest(file), store.put("a/b", b""), store.get("a/b"), keys(store), store.prepare()):
        with pytest.raises(StoreUnavailable) as raised:
            await work
        code, message = describe(raised.value)
        assert code == "objects_unavailable"
        assert "refuses the connection" in message
        assert PASSWORD not in message
    own_server.restart()
    assert (await store.ingest(file)).size == len(DATA)


async def test_a_cancelled_call_ends_soon_although_the_server_hangs(own_server: Minio, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    store = S3Store(own_server.place(), tmp_path / "scratch")
    await store.put("plans/a.json", DATA)
    own_server.hang()
    try:
        reader = store.read("plans/a.json", chunk=len(DATA))
        for work in (anext(reader), store.stat("plans/a.json"), store.ingest(tmp_path / "file")):
            task = asyncio.ensure_future(work)
            await asyncio.wait([task], timeout=0.3)
            task.cancel()
            await asyncio.wait([task], timeout=20)  # a request may take a minute
            assert task.cancelled()
    finally:
        own_server.go_on()
    assert await store.get("plans/a.json", limit=len(DATA)) == DATA


_MEASURED = """
import asyncio, sys, json, resource
from pathlib import Path
from shared.objects.s3 import S3Store
from shared.objects.s3_bucket import S3Place
given = json.loads(sys.stdin.readline())
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
async def main():
    store = S3Store(S3Place(**given["place"]), Path(given["scratch"]))
    await store.put("plans/a.json", b"x")
    before = peak()
    info = await store.ingest(Path(given["file"]))
    uploaded = peak()
    async for chunk in store.read(info.key):
        pass
    print(json.dumps({"before": before, "uploaded": uploaded, "read": peak()}))
asyncio.run(main())
"""


async def test_memory_is_bounded_by_the_parts_on_their_way(place: S3Place, minio: Minio, tmp_path: Path) -> None:
    large(tmp_path / "file", 300 << 20)
    process = child(place, tmp_path / "file", tmp_path / "scratch", _MEASURED)
    out, _ = await asyncio.to_thread(process.communicate)
    peaks = json.loads(out)
    assert peaks["uploaded"] - peaks["before"] < 64 + 32  # four parts of 16 MiB; the rest is what allocators keep
    assert peaks["read"] - peaks["uploaded"] < 16


def test_the_memory_of_parts_is_used_again_while_an_upload_runs() -> None:
    buffers = Buffers()
    with buffers.kept():
        first = buffers.take(100)
        buffers.give(first)
        with buffers.kept():
            assert buffers.take(100) is first
        buffers.give(first)
        assert len(buffers.take(200)) == 200  # in place of the other
        assert buffers.take(100) is not first
        buffers.give(first)
    with buffers.kept():
        assert buffers.take(100) is not first
    buffers.give(first)  # of a part that nobody waits for any more
    with buffers.kept():
        assert buffers.take(100) is not first


def test_the_parts_of_any_file_are_few_enough() -> None:
    for size in (0, 1, PART, 156 << 30, 157 << 30, 500 << 30, 5 << 40):
        assert -(-size // part_size(size)) <= 10_000
        assert part_size(size) % PART == 0
    assert part_size(500 << 30) == 64 << 20


async def test_nothing_secret_is_shown(store: S3Store, place: S3Place) -> None:
    for shown in (repr(place), str(place), repr(store), repr(store._bucket), repr(vars(store))):
        assert PASSWORD not in shown


async def test_two_stores_of_one_process_adopt_the_same_at_once(
    place: S3Place, minio: Minio, tmp_path: Path, source: Path
) -> None:
    stores = [S3Store(place, tmp_path / "scratch") for _ in range(2)]
    files = []
    for number in range(6):
        files.append(tmp_path / f"copy{number}")
        files[-1].write_bytes(DATA)
    infos: list[ObjectInfo] = await asyncio.gather(
        *(stores[number % 2].adopt(file, SHA256) for number, file in enumerate(files))
    )
    assert {info.key for info in infos} == {blob_key(SHA256)}
    assert not any(file.exists() for file in files)
    assert unfinished(minio, place) == []

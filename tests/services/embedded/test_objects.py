"""`stepway objects migrate`: there and back, cut off in the middle, with damage at the source."""

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.embedded.folder import DataFolder, Places
from services.embedded.objects import run_migrate
from shared.objects import DirectoryStore, blob_key
from shared.objects.s3 import S3Store
from shared.objects.s3_bucket import S3Place
from shared.settings import Settings
from tests.shared.objects.kinds import keys, read
from tests.testbed.minio import PASSWORD, USER, Minio

ROOT = Path(__file__).parents[3]


@pytest.fixture
def place(minio: Minio) -> S3Place:
    return minio.place(prefix="team/")


@pytest.fixture
def settings(place: S3Place, tmp_path: Path) -> Settings:
    return Settings.model_validate({
        "data_dir": tmp_path / "data", "s3_endpoint": place.endpoint, "s3_access_key": USER, "s3_secret_key": PASSWORD,
    })  # fmt: skip


async def filled(folder: Path, count: int = 12, size: int = 3 << 20) -> dict[str, bytes]:
    """A directory store with blobs and documents; what is in it."""
    store = DirectoryStore(folder)
    content: dict[str, bytes] = {}
    for number in range(count):
        data = os.urandom(size + number)
        (folder.parent / "file").write_bytes(data)
        content[(await store.ingest(folder.parent / "file")).key] = data
    for number in range(3):
        content[f"manifests/{number}.json"] = b"{%d}" % number
        await store.put(f"manifests/{number}.json", b"{%d}" % number)
    return content


def migrate(settings: Settings, source: str | None, target: str | None, **options: Any) -> tuple[int, str]:
    said: list[str] = []
    code = run_migrate(settings, source, target, say=said.append, **options)
    return code, "\n".join(said)


async def test_there_and_back(settings: Settings, place: S3Place, tmp_path: Path) -> None:
    content = await filled(tmp_path / "data" / "objects")
    store = S3Store(place, tmp_path / "scratch")
    code, said = await asyncio.to_thread(migrate, settings, None, place.url, dry=True)
    assert code == 0
    assert "15 objects" in said
    assert "would be copied" in said
    assert await keys(store) == []
    code, said = await asyncio.to_thread(migrate, settings, None, place.url)
    assert code == 0
    assert "15 objects" in said
    assert f"STEPWAY_S3_BUCKET={place.bucket}" in said
    assert PASSWORD not in said
    assert {key: await read(store, key) for key in await keys(store)} == content
    assert set(await keys(DirectoryStore(tmp_path / "data" / "objects"))) == set(content)  # the source stays
    code, said = await asyncio.to_thread(migrate, settings, None, place.url, delete_source=True)
    assert code == 0
    assert "0 objects (0.0 MB) copied and verified, 15 were there alike" in said
    assert await keys(DirectoryStore(tmp_path / "data" / "objects")) == []

    code, said = await asyncio.to_thread(migrate, settings, place.url, str(tmp_path / "back"), delete_source=True)
    assert code == 0, said
    back = DirectoryStore(tmp_path / "back")
    assert {key: await read(back, key) for key in await keys(back)} == content
    assert await keys(store) == []


async def test_from_bucket_to_bucket(settings: Settings, place: S3Place, minio: Minio, tmp_path: Path) -> None:
    content = await filled(tmp_path / "objects", count=3)
    code, said = await asyncio.to_thread(migrate, settings, str(tmp_path / "objects"), place.url)
    assert code == 0, said
    other = minio.place()
    code, said = await asyncio.to_thread(migrate, settings, place.url, other.url)
    assert code == 0, said
    store = S3Store(other, tmp_path / "scratch")
    assert {key: await read(store, key) for key in await keys(store)} == content


async def test_damage_at_the_source_is_named_and_nothing_deleted(
    settings: Settings, place: S3Place, tmp_path: Path
) -> None:
    content = await filled(tmp_path / "data" / "objects", count=3)
    damaged = next(key for key in content if key.startswith("blobs/"))
    path = tmp_path / "data" / "objects" / damaged
    path.chmod(0o600)
    path.write_bytes(b"!" + content[damaged][1:])
    code, said = await asyncio.to_thread(migrate, settings, None, place.url, delete_source=True)
    assert code == 1
    assert f"Damaged at the source, and not copied: {damaged}" in said
    assert set(await keys(DirectoryStore(tmp_path / "data" / "objects"))) == set(content)
    assert set(await keys(S3Store(place, tmp_path / "scratch"))) == set(content) - {damaged}


_CHILD = """
import sys, os
from pathlib import Path
from services.embedded import objects
from shared.settings import load
objects.EVERY = 0.0
sys.exit(objects.run_migrate(load(os.environ), sys.argv[1], sys.argv[2]))
"""


@pytest.mark.parametrize("to_bucket", [True, False], ids=["there", "back"])
async def test_what_was_killed_is_gone_on_with(
    settings: Settings, place: S3Place, tmp_path: Path, to_bucket: bool
) -> None:
    content = await filled(tmp_path / "objects", count=25, size=6 << 20)
    if not to_bucket:
        code, said = await asyncio.to_thread(migrate, settings, str(tmp_path / "objects"), place.url)
        assert code == 0, said
    source, target = (tmp_path / "objects", place.url) if to_bucket else (place.url, tmp_path / "back")
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "STEPWAY_DATA_DIR": str(settings.data_dir),
        "STEPWAY_S3_ENDPOINT": place.endpoint, "STEPWAY_S3_ACCESS_KEY": USER, "STEPWAY_S3_SECRET_KEY": PASSWORD,
    }  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(source), str(target)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if re.match(r"[5-9] of 28 objects", line):
            child.send_signal(signal.SIGKILL)
            break
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    code, said = await asyncio.to_thread(migrate, settings, str(source), str(target))
    assert code == 0, said
    alike = re.search(r"(\d+) were there alike", said)
    assert alike is not None
    assert int(alike[1]) >= 5  # what was there was not brought again
    end = S3Store(place, tmp_path / "scratch") if to_bucket else DirectoryStore(tmp_path / "back")
    assert {key: hashlib.sha256(await read(end, key)).digest() for key in await keys(end)} == {
        key: hashlib.sha256(data).digest() for key, data in content.items()
    }


def test_a_folder_in_use_is_refused(settings: Settings, place: S3Place, capfd: pytest.CaptureFixture[str]) -> None:
    folder = DataFolder(Places.of(settings))
    folder.open()
    try:
        assert migrate(settings, None, place.url)[0] == 1
        assert "uses the data directory" in capfd.readouterr().err
    finally:
        folder.close()


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (None, None, "--to"),
        (None, "ftp://x/y", "neither a folder"),
        (None, "s3://Bad_Bucket", "cannot be used"),
        (None, "/tmp/somewhere", "Name the bucket as well"),
        (None, "s3://no-such-bucket", "has no bucket no-such-bucket"),
    ],
    ids=["nothing", "scheme", "bucket-name", "no-bucket", "missing-bucket"],
)
def test_what_cannot_be_is_said(
    settings: Settings, source: str | None, target: str | None, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert migrate(settings, source, target)[0] == 1
    assert expected in capfd.readouterr().err


async def test_blobs_of_other_programs_are_judged_by_their_bytes(
    settings: Settings, place: S3Place, minio: Minio, tmp_path: Path
) -> None:
    content = await filled(tmp_path / "data" / "objects", count=1)
    key = next(iter(content))
    wrong = b"x" * len(content[key])
    minio.client._put_object(place.bucket, f"team/{key}", wrong)  # of the right size, and no noted digest
    code, said = await asyncio.to_thread(migrate, settings, None, place.url)
    assert code == 0, said
    assert await read(S3Store(place, tmp_path / "scratch"), key) == content[key]
    assert key == blob_key(hashlib.sha256(content[key]).hexdigest())

"""Backup and restore of a whole installation, and what a restore refuses."""

import io
import json
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from services.embedded.backup import run_backup, run_restore, run_rotate_encryption
from shared.settings import Settings
from tests.e2e.conftest import Make
from tests.e2e.instance import Stepway, until


def settings_of(stepway: Stepway, **more: object) -> Settings:
    return Settings.model_validate({**stepway.settings, "data_dir": stepway.data, "model_roots": [], **more})


def backup(stepway: Stepway, file: Path) -> None:
    assert run_backup(settings_of(stepway), file, lambda _: None) == 0


def restore(stepway: Stepway, file: Path) -> int:
    return run_restore(settings_of(stepway), file, lambda _: None)


@pytest.mark.parametrize("running", [True, False])
def test_the_drill(make: Make, model_file: Path, folder: Path, running: bool) -> None:
    stepway = make().start()
    model, endpoint = stepway.serve(model_file)
    stepway.made(stepway.add_worker(endpoint))
    if not running:
        stepway.stop()
    file = folder / "backup.tar"
    backup(stepway, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    if running:
        assert stepway.chat(endpoint)
        stepway.stop()
    assert not list((stepway.data / "objects" / "scratch").iterdir())
    key = stepway.key
    shutil.rmtree(stepway.data)

    assert restore(stepway, file) == 0
    assert stat.S_IMODE(stepway.data.stat().st_mode) == 0o700
    assert stat.S_IMODE((stepway.data / "encryption.key").stat().st_mode) == 0o600
    stepway.start()
    assert stepway.key == key
    assert [one["id"] for one in stepway.get("/models")["data"]] == [model]
    assert len(stepway.get("/clusters")["data"]) == 1
    until(lambda: len(stepway.servers()) == 2, what="both workers")
    until(lambda: stepway.chats(endpoint), what="the endpoint to answer")
    until(lambda: stepway.get(f"/endpoints/{endpoint}")["state"] == "running", what="it to be seen")


def test_a_restore_mixes_with_nothing(
    stepway: Stepway, make: Make, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = folder / "backup.tar"
    backup(stepway, file)
    assert restore(stepway, file) == 1  # it runs
    assert "uses the data directory" in capfd.readouterr().err
    assert run_backup(settings_of(stepway), file, lambda _: None) == 1  # the file is there
    assert "is there already" in capfd.readouterr().err

    stepway.stop()
    before = sorted(path.name for path in stepway.data.iterdir())
    assert restore(stepway, file) == 1
    assert "is not empty" in capfd.readouterr().err
    assert sorted(path.name for path in stepway.data.iterdir()) == before
    stepway.start()


def rewritten(file: Path, change: str) -> Path:
    """A copy of the archive that is not as it was made."""
    bad = file.with_name(f"{change}.tar")
    with tarfile.open(file) as old, tarfile.open(bad, "w") as new:
        for member in old:
            source = old.extractfile(member)
            content = source.read() if source else b""
            if change == "damaged" and member.name == "database.dump":
                content = content[:-1] + bytes([content[-1] ^ 1])
            if change == "swapped" and member.name == "encryption.key":
                continue
            if change == "newer" and member.name == "manifest.json":
                content = json.dumps({**json.loads(content), "version": 99}).encode()
            if change == "unlisted" and member.name == "manifest.json":
                add(new, "objects/blobs/ab/more", b"more")
            if change == "outside" and member.name == "manifest.json":
                add(new, "objects/../../outside", b"more")
            if change == "link" and member.name == "manifest.json":
                link = tarfile.TarInfo("objects/blobs/ab/link")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                new.addfile(link)
            if change == "cut" and member.name == "manifest.json":
                continue
            add(new, member.name, content)
            if change == "twice" and member.name == "encryption.key":
                add(new, member.name, content)
    if change == "truncated":
        bad.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return bad


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_a_damaged_or_hostile_archive_restores_nothing(
    stepway: Stepway, make: Make, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = folder / "backup.tar"
    backup(stepway, file)
    fresh = make("fresh")
    expected = {
        "damaged": "is damaged", "swapped": "is damaged", "newer": "format 99", "unlisted": "is damaged",
        "outside": "holds something", "link": "holds something", "cut": "cut short", "twice": "holds something",
        "truncated": "damaged",
    }  # fmt: skip
    for change, sentence in expected.items():
        capfd.readouterr()
        assert restore(fresh, rewritten(file, change)) == 1, change
        said = capfd.readouterr().err
        assert sentence in said, (change, said)
        assert [path.name for path in fresh.data.iterdir()] == ["stepway.lock"], change
    assert not (folder / "outside").exists()
    assert restore(fresh, file) == 0
    fresh.start()


def test_a_restore_that_was_cut_off_does_not_start(make: Make) -> None:
    stepway = make()
    stepway.data.mkdir()
    (stepway.data / "restoring").touch()
    stepway.spawn()
    assert stepway.wait() == 1
    assert "restore again" in stepway.said()


def test_rotated_keys_open_everything_and_old_backups_stay_good(
    stepway: Stepway, model_file: Path, folder: Path
) -> None:
    _, endpoint = stepway.serve(model_file)
    file = folder / "backup.tar"
    backup(stepway, file)
    before = json.loads((stepway.data / "encryption.key").read_text())
    said: list[str] = []
    assert run_rotate_encryption(settings_of(stepway), said.append) == 0
    after = json.loads((stepway.data / "encryption.key").read_text())
    assert after["active"] != before["active"]
    assert list(after["keys"]) == [after["active"]]
    assert "1 old keys are gone" in said[0]
    assert stepway.chat(endpoint)
    stepway.stop()
    stepway.start()
    until(lambda: stepway.chats(endpoint), what="the endpoint to answer")

    stepway.stop()
    assert run_rotate_encryption(settings_of(stepway), said.append) == 0  # while it does not run
    shutil.rmtree(stepway.data)
    assert restore(stepway, file) == 0
    stepway.start()
    until(lambda: stepway.chats(endpoint), what="the endpoint to answer")

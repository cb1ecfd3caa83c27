"""A model's files where the workers read them: whole, private, nowhere else."""

from hashlib import sha256
from pathlib import Path

import pytest

from services.cluster.sites import files
from shared.contracts.models import Manifest, ModelFile
from shared.jobs.outcomes import Permanent
from shared.objects import DirectoryStore
from shared.objects.store import blob_key

CONTENT = {"config.json": b"{}", "weights/model.gguf": b"GGUF" * 1000}


class Elsewhere(DirectoryStore):
    """A store that is not on this machine: it is read, not linked to."""

    def local_path(self, key: str) -> Path | None:
        return None


def quiet(_percent: float | None, _message: str) -> None:
    pass


async def stored(objects: DirectoryStore, folder: Path) -> Manifest:
    made = []
    for path, content in CONTENT.items():
        source = folder / "source"
        source.write_bytes(content)
        await objects.ingest(source)
        made.append(ModelFile(path=path, size=len(content), sha256=sha256(content).hexdigest()))
    return Manifest(digest="0" * 64, files=made)


@pytest.mark.parametrize("kind", [DirectoryStore, Elsewhere])
async def test_files_are_brought_whole_and_only_once(tmp_path: Path, kind: type[DirectoryStore]) -> None:
    objects = kind(tmp_path / "objects")
    manifest = await stored(objects, tmp_path)
    folder = tmp_path / "models" / "e"
    told: list[float | None] = []
    await files.bring(manifest, folder, objects, lambda percent, _: told.append(percent))
    assert {path: (folder / path).read_bytes() for path in CONTENT} == CONTENT
    assert told[-1] == 100
    assert folder.stat().st_mode & 0o077 == 0
    before = {path: (folder / path).stat().st_ino for path in CONTENT}
    await files.bring(manifest, folder, objects, quiet)
    assert {path: (folder / path).stat().st_ino for path in CONTENT} == before
    assert (before["config.json"] == (tmp_path / "objects" / blob_key(manifest.files[0].sha256)).stat().st_ino) is (
        kind is DirectoryStore
    )
    await files.forget(folder)
    assert not folder.exists()
    assert await objects.exists(blob_key(manifest.files[0].sha256))


async def test_a_file_that_was_changed_or_cut_is_brought_again(tmp_path: Path) -> None:
    objects = Elsewhere(tmp_path / "objects")
    manifest = await stored(objects, tmp_path)
    folder = tmp_path / "e"
    await files.bring(manifest, folder, objects, quiet)
    (folder / "config.json").write_bytes(b"[]")
    (folder / "weights" / "model.gguf").write_bytes(b"GGUF")
    (folder / "weights" / "model.gguf.partial").write_bytes(b"half")
    await files.bring(manifest, folder, objects, quiet)
    assert {path: (folder / path).read_bytes() for path in CONTENT} == CONTENT
    assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("kind", [DirectoryStore, Elsewhere])
async def test_a_damaged_or_missing_blob_is_refused(tmp_path: Path, kind: type[DirectoryStore]) -> None:
    objects = kind(tmp_path / "objects")
    manifest = await stored(objects, tmp_path)
    blob = tmp_path / "objects" / blob_key(manifest.files[1].sha256)
    blob.chmod(0o600)
    if kind is Elsewhere:
        blob.write_bytes(b"GGUX" * 1000)
    else:
        blob.unlink()
    with pytest.raises(Permanent) as raised:
        await files.bring(manifest, tmp_path / "e", objects, quiet)
    assert raised.value.code == ("checksum_mismatch" if kind is Elsewhere else "file_missing")
    assert not (tmp_path / "e" / "weights" / "model.gguf").exists()


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b"])
async def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    objects = DirectoryStore(tmp_path / "objects")
    file = ModelFile.model_construct(path=path, size=0, sha256="0" * 64)
    manifest = Manifest.model_construct(files=[file], digest="0" * 64)
    with pytest.raises(Permanent) as raised:
        await files.bring(manifest, tmp_path / "models" / "e", objects, quiet)
    assert raised.value.code == "unsafe_path"

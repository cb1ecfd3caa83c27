"""Models from the disk: what is outside the configured folders stays there, by whatever way."""

import errno
import os
import socket
from pathlib import Path

import pytest

from services.model.sources.base import SourceContext, SourcePlan
from services.model.sources.disk import Disk
from shared.contracts.models import Manifest, Source
from shared.jobs.outcomes import Permanent, Retry
from shared.objects import DirectoryStore
from tests.services.model.sources.conftest import MakeContext, bytes_of, spec

SOURCE = Disk()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "m" / "sub").mkdir(parents=True)
    (folder / "m" / "config.json").write_bytes(b"{}")
    (folder / "m" / "sub" / "a.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(b"secret")
    return file


@pytest.fixture
def here(context: MakeContext, root: Path) -> SourceContext:
    return context(roots=(root,))


async def _check(context: SourceContext, path: Path) -> SourcePlan:
    return await SOURCE.check(spec(Source.DISK, str(path)), context)


async def _import(context: SourceContext, path: Path) -> Manifest:
    return await SOURCE.fetch(await _check(context, path), context, lambda done, total: None)


async def _refusal(context: SourceContext, path: Path) -> str:
    with pytest.raises(Permanent) as refused:
        await _import(context, path)
    return refused.value.code


async def test_a_folder_and_a_file_are_copied(here: SourceContext, root: Path, objects: DirectoryStore) -> None:
    (root / "m" / ".git").mkdir()
    (root / "m" / ".git" / "config").write_bytes(b"hidden")
    manifest = await _import(here, root / "m")
    assert [file.path for file in manifest.files] == ["config.json", "sub/a.safetensors"]
    single = await _import(here, root / "m" / "sub" / "a.safetensors")
    assert [file.path for file in single.files] == ["a.safetensors"]
    # the copy does not follow its source
    with (root / "m" / "sub" / "a.safetensors").open("r+b") as file:
        file.write(b"CHANGED")
    assert await bytes_of(objects, single.files[0].sha256) == b"weights"


async def test_links_that_stay_inside_are_followed(here: SourceContext, root: Path, objects: DirectoryStore) -> None:
    # as the cache of a hub lies on a disk
    (root / "snapshot").mkdir()
    (root / "snapshot" / "model.safetensors").symlink_to("../m/sub/a.safetensors")
    (root / "link").symlink_to(root / "snapshot")
    manifest = await _import(here, root / "link")
    assert [(file.path, file.size) for file in manifest.files] == [("model.safetensors", 7)]


async def test_nothing_outside_the_roots_is_reached(here: SourceContext, root: Path, outside: Path) -> None:
    (root / "file-link").symlink_to(outside)
    (root / "folder-link").symlink_to(outside.parent)
    (root / "m" / "inner-link").symlink_to(outside)
    for path in (outside, root / "file-link", root / "folder-link" / "secret", root / "m", root / "none", root.parent):
        assert await _refusal(here, path) == "outside_roots"
    # a name that begins as the root does is not inside it
    beside = root.parent / "models-2"
    beside.mkdir()
    assert await _refusal(here, beside) == "outside_roots"


async def test_without_roots_nothing_is_taken(context: MakeContext, root: Path) -> None:
    assert await _refusal(context(), root / "m") == "outside_roots"


async def test_special_files_and_loops_are_refused(here: SourceContext, root: Path) -> None:
    pipe = root / "pipe"
    os.mkfifo(pipe)
    assert await _refusal(here, pipe) == "not_a_regular_file"
    with socket.socket(socket.AF_UNIX) as server:
        place = Path(os.path.relpath(root / "socket"))
        server.bind(str(place))
        assert await _refusal(here, root / "socket") == "not_a_regular_file"
    (root / "m" / "sub" / "loop").symlink_to(root / "m")
    assert await _refusal(here, root / "m") == "unsafe_path"


async def test_a_name_that_is_no_text_is_refused(here: SourceContext, root: Path) -> None:
    (root / "m" / os.fsdecode(b"bad\xff")).write_bytes(b"x")
    assert await _refusal(here, root / "m") == "unsafe_path"


@pytest.mark.parametrize("change", ["write", "replace", "link", "remove", "pipe"])
async def test_a_change_after_the_check_is_found(here: SourceContext, root: Path, outside: Path, change: str) -> None:
    file = root / "m" / "sub" / "a.safetensors"
    plan = await _check(here, root / "m")
    match change:
        case "write":
            file.write_bytes(b"other!!")
            os.utime(file, ns=(1, 1))
        case "replace":
            (root / "new").write_bytes(b"weights")
            (root / "new").replace(file)
        case "link":
            file.unlink()
            file.symlink_to(outside)
        case "remove":
            file.unlink()
        case "pipe":
            file.unlink()
            os.mkfifo(file)
    with pytest.raises(Permanent) as refused:
        await SOURCE.fetch(plan, here, lambda done, total: None)
    assert refused.value.code in ("source_changed", "outside_roots")


async def test_limits_hold(here: SourceContext, context: MakeContext, root: Path) -> None:
    assert await _refusal(context(roots=(root,), max_bytes=8), root / "m") == "model_too_large"
    (root / "empty").mkdir()
    assert await _refusal(here, root / "empty") == "no_model_files"


async def test_the_same_bytes_under_a_new_name_have_the_new_name(here: SourceContext, root: Path) -> None:
    """Bytes are stored once; names are each model's own, also where the first import was cut off."""
    file = root / "m" / "sub" / "a.safetensors"
    first = await _import(here, file)
    renamed = file.rename(file.with_name("b.safetensors"))
    second = await _import(here, renamed)
    copied = await _import(here, root / "m")
    assert [one.path for one in second.files] == ["b.safetensors"]
    assert [one.path for one in copied.files] == ["config.json", "sub/b.safetensors"]
    assert first.files[0].sha256 == second.files[0].sha256
    assert first.digest != second.digest


async def test_a_fault_of_the_disk_is_a_sentence(
    here: SourceContext, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scandir(path: object) -> object:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(Retry) as raised:
        await _check(here, root / "m")
    assert raised.value.message == "The path cannot be read: Input/output error."


async def test_progress_reaches_the_total(here: SourceContext, root: Path) -> None:
    plan = await _check(here, root / "m")
    seen: list[tuple[int, int | None]] = []
    await SOURCE.fetch(plan, here, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9, 9)

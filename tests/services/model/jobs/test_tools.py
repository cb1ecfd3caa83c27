"""Where the steps of the model service find a stored model's files."""

from hashlib import sha256
from pathlib import Path

import pytest

from services.app.context import AppContext
from services.app.internal import AppAccess
from services.model.jobs.tools import ModelTools
from shared.contracts.models import ModelFile
from shared.jobs.outcomes import Permanent
from shared.objects import DirectoryStore
from shared.objects.store import blob_key
from tests.services.app.conftest import app_context

__all__ = ["app_context"]


class Elsewhere(DirectoryStore):
    """A store that is not on this machine."""

    def local_path(self, key: str) -> Path | None:
        return None


@pytest.mark.parametrize("kind", [DirectoryStore, Elsewhere])
async def test_files_can_be_read_while_they_are_placed(
    app_context: AppContext, tmp_path: Path, kind: type[DirectoryStore]
) -> None:
    objects = kind(tmp_path / "store")
    files = []
    for number in range(2):
        content = bytes([number]) * 3_000_000
        source = tmp_path / "source"
        source.write_bytes(content)
        await objects.ingest(source)
        files.append(ModelFile(path=f"f{number}", size=len(content), sha256=sha256(content).hexdigest()))
    tools = ModelTools(AppAccess(app_context), objects, app_context.settings)
    async with tools.placed(files) as places:
        assert [file.path for file, _ in places] == ["f0", "f1"]
        assert [sha256(place.read_bytes()).hexdigest() for _, place in places] == [file.sha256 for file in files]
    left = [place.exists() for _, place in places]
    assert left == [kind is DirectoryStore] * 2  # copies go with the block, the store's own files stay
    assert await objects.exists(blob_key(files[0].sha256))


async def test_only_the_heads_of_files_are_brought_where_that_is_enough(
    app_context: AppContext, tmp_path: Path
) -> None:
    objects = Elsewhere(tmp_path / "store")
    (tmp_path / "source").write_bytes(b"head" + b"x" * 5_000_000)
    info = await objects.ingest(tmp_path / "source")
    file = ModelFile(path="model.gguf", size=info.size, sha256=info.key.rpartition("/")[2])
    tools = ModelTools(AppAccess(app_context), objects, app_context.settings)
    async with tools.placed([file], head=4) as places:
        assert places[0][1].stat().st_size == info.size
        assert places[0][1].read_bytes()[:8] == b"head\0\0\0\0"
    assert not list((tmp_path / "store" / "scratch").iterdir())


async def test_what_is_missing_damaged_or_too_large_is_said(app_context: AppContext, tmp_path: Path) -> None:
    objects = Elsewhere(tmp_path / "store")
    (tmp_path / "source").write_bytes(b"content")
    info = await objects.ingest(tmp_path / "source")
    blob = tmp_path / "store" / info.key
    blob.chmod(0o600)
    blob.write_bytes(b"CONTENT")
    tools = ModelTools(AppAccess(app_context), objects, app_context.settings)
    damaged = ModelFile(path="f", size=7, sha256=info.key.rpartition("/")[2])
    missing = ModelFile(path="f", size=7, sha256=sha256(b"none").hexdigest())
    huge = ModelFile(path="f", size=2**60, sha256=damaged.sha256)
    for file, code in ((damaged, "checksum_mismatch"), (missing, "file_missing"), (huge, "insufficient_disk")):
        with pytest.raises(Permanent) as raised:
            async with tools.placed([file]):
                pass
        assert raised.value.code == code
    assert not list((tmp_path / "store" / "scratch").iterdir())

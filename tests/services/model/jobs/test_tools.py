"""Where the steps of the model service find a stored model's files."""

from hashlib import sha256
from pathlib import Path

import pytest

from services.app.context import AppContext
from services.app.internal import AppAccess
from services.model.jobs.tools import ModelTools
from shared.contracts.models import ModelFile
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

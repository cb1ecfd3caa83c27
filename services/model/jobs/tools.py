"""What the steps of the model service reach the world with."""

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.contracts.models import Manifest, ModelFile
from shared.contracts.ports import AppPort
from shared.objects.blocking import settled
from shared.objects.store import ObjectStore, blob_key, manifest_key
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelTools:
    app: AppPort
    objects: ObjectStore
    settings: Settings

    async def manifest(self, digest: str) -> Manifest:
        return Manifest.model_validate_json(await self.objects.get(manifest_key(digest)))

    @asynccontextmanager
    async def placed(self, files: Sequence[ModelFile]) -> AsyncIterator[list[tuple[ModelFile, Path]]]:
        """Where stored files can be read within the block: in the store itself where that is a directory, else copies."""
        local = [self.objects.local_path(blob_key(file.sha256)) for file in files]
        found = [(file, path) for file, path in zip(files, local, strict=True) if path is not None]
        if len(found) == len(files):
            yield found
            return
        with tempfile.TemporaryDirectory(prefix="stepway-model-") as folder:
            yield [(file, await self._copy(Path(folder), file.sha256)) for file in files]

    async def _copy(self, folder: Path, sha256: str) -> Path:
        target = folder / sha256
        with target.open("wb") as out:
            async for chunk in self.objects.read(blob_key(sha256)):
                await settled(out.write, chunk)
        return target

"""What the steps of the model service reach the world with."""

from dataclasses import dataclass
from pathlib import Path

from shared.contracts.models import Manifest
from shared.contracts.ports import AppPort
from shared.objects.store import ObjectStore, blob_key, manifest_key
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelTools:
    app: AppPort
    objects: ObjectStore
    settings: Settings

    async def manifest(self, digest: str) -> Manifest:
        return Manifest.model_validate_json(await self.objects.get(manifest_key(digest)))

    async def place(self, folder: Path, sha256: str) -> Path:
        """Where a stored file can be read: in the store itself where that is a directory, else a copy in `folder`."""
        local = self.objects.local_path(blob_key(sha256))
        if local is not None:
            return local
        target = folder / sha256
        with target.open("wb") as out:
            async for chunk in self.objects.read(blob_key(sha256)):
                out.write(chunk)
        return target

"""What the steps of the model service reach the world with."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.contracts.models import Manifest, ModelFile
from shared.contracts.ports import AppPort
from shared.jobs.outcomes import Permanent
from shared.objects.fetching import check_room, fetch, fetch_head
from shared.objects.scratch import held_scratch
from shared.objects.store import ObjectNotFound, ObjectStore, WrongDigest, blob_key, manifest_key
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelTools:
    app: AppPort
    objects: ObjectStore
    settings: Settings

    async def manifest(self, digest: str) -> Manifest:
        return Manifest.model_validate_json(await self.objects.get(manifest_key(digest)))

    @asynccontextmanager
    async def placed(
        self, files: Sequence[ModelFile], *, head: int | None = None
    ) -> AsyncIterator[list[tuple[ModelFile, Path]]]:
        """Where stored files can be read within the block: in the store itself where that is a directory, else copies.

        With `head`, only so many first bytes of each copy are sure to be there; the sizes are right. Raises `Permanent`
        when there is no room for the copies, or a stored file is damaged or gone.
        """
        local = [self.objects.local_path(blob_key(file.sha256)) for file in files]
        found = [(file, path) for file, path in zip(files, local, strict=True) if path is not None]
        if len(found) == len(files):
            yield found
            return
        async with held_scratch(self.objects, "placed") as folder:
            copies = {file.sha256: file for file in files}
            await check_room(folder, sum(min(file.size, head or file.size) for file in copies.values()))
            for file in copies.values():
                await self._copy(file, folder / file.sha256, head)
            yield [(file, folder / file.sha256) for file in files]

    async def _copy(self, file: ModelFile, target: Path, head: int | None) -> None:
        try:
            if head is not None and head < file.size:
                await fetch_head(self.objects, file.sha256, file.size, target, head)
            else:
                await fetch(self.objects, file.sha256, target)
        except ObjectNotFound:
            raise Permanent("file_missing", f"{file.path} is not in the object store.") from None
        except WrongDigest:
            raise Permanent("checksum_mismatch", f"{file.path} in the object store is not what was imported.") from None

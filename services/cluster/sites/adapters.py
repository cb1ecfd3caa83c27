"""What a model's LoRA adapters say of themselves: their rank, without which an engine cannot make room for them."""

import json
from collections.abc import Iterable

from services.cluster.engines.base import SettingUnsupported
from shared.contracts.models import Manifest, ModelFile
from shared.jobs.outcomes import Permanent
from shared.objects.store import ObjectNotFound, ObjectStore, blob_key

_LARGEST = 256 * 1024  # bytes of a configuration


async def ranks(objects: ObjectStore, manifest: Manifest, folders: Iterable[str]) -> dict[str, int]:
    """By folder; one that is not there is left out. Raises SettingUnsupported where an adapter does not tell."""
    files = {file.path: file for file in manifest.files}
    found = {folder: files.get(f"{folder}/adapter_config.json") for folder in folders}
    return {folder: await _rank(objects, folder, file) for folder, file in found.items() if file is not None}


async def _rank(objects: ObjectStore, folder: str, file: ModelFile) -> int:
    """Peft writes it as `r`. The file is a stranger's."""
    unreadable = SettingUnsupported(f"The adapter_config.json of the LoRA adapter {folder} does not tell its rank (r).")
    if file.size > _LARGEST:
        raise unreadable
    try:
        content = await objects.get(blob_key(file.sha256))
        document = json.loads(content)
    except ObjectNotFound:
        raise Permanent("file_missing", f"{file.path} is not in the object store any more.") from None
    except (ValueError, RecursionError):
        raise unreadable from None
    rank = document.get("r") if isinstance(document, dict) else None
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise unreadable
    return rank

"""The object store at the start of a process: opened by the settings, prepared, and looked at by the probes."""

import asyncio
import os
from pathlib import Path

import structlog

from services.assembly.process import StartError
from shared.objects.opened import open_store
from shared.objects.store import ObjectStore, StoreRefused, StoreUnavailable
from shared.settings import Settings

log = structlog.get_logger(__name__)


def opened(settings: Settings, directory: Path) -> ObjectStore:
    try:
        return open_store(settings, directory)
    except StoreRefused as refused:
        raise StartError(refused.message) from None


async def prepared(objects: ObjectStore) -> None:
    """A store that is away may come back: jobs wait for it. One that refuses us will not let us by waiting."""
    try:
        await objects.prepare()
    except StoreRefused as refused:
        raise StartError(f"{refused.message} `stepway check` tries every setting.") from None
    except StoreUnavailable as away:
        log.warning("objects_away", reason=away.message)


async def reached(objects: ObjectStore) -> bool:
    """Whether objects can be had and stored now. Raises where they cannot."""
    name = "readiness.json"
    path = objects.local_path(name)
    if path is not None:
        return await asyncio.to_thread(os.access, path.parent, os.R_OK | os.W_OK | os.X_OK)
    await objects.exists(name)
    return True

"""`stepway objects migrate`: the objects of an installation from a folder into a bucket, or back, or to another bucket.

The data directory is held meanwhile, so that no Stepway on it changes what is copied. Others that share the folder or the
bucket must be stopped by hand.
"""

import asyncio
import time
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from services.assembly.process import Say, StartError, configure_logs, plainly, say_aloud
from services.embedded.folder import DataFolder, Places
from shared.objects.directory import DirectoryStore
from shared.objects.moving import Moved, delete_all, move_all
from shared.objects.opened import open_store, s3_place
from shared.objects.s3 import S3Store
from shared.objects.store import ObjectStore, StoreRefused
from shared.settings import Settings

EVERY = 2.0  # seconds between two lines of progress


def run_migrate(
    settings: Settings, source: str | None, target: str | None, *, dry: bool = False, delete_source: bool = False,
    say: Say = say_aloud,
) -> int:  # fmt: skip
    """A place is a folder or s3://bucket/prefix, at the endpoint of the settings. Returns the exit code.

    1 when a blob at the source is damaged: it is named, and nothing is deleted then.
    """
    configure_logs()
    return plainly(lambda: _migrate(settings, source, target, dry, delete_source, say))


def _migrate(
    settings: Settings, source: str | None, target: str | None, dry: bool, delete_source: bool, say: Say
) -> int:
    places = Places.of(settings)
    folder = DataFolder(places)
    folder.open()
    try:
        return asyncio.run(_moved(settings, places, source, target, dry, delete_source, say))
    finally:
        folder.close()


async def _moved(
    settings: Settings, places: Places, source: str | None, target: str | None, dry: bool, delete_source: bool, say: Say
) -> int:
    if source is None and target is None:
        raise StartError("Say where the objects go (--to) or come from (--from): a folder, or s3://bucket/prefix.")
    here = _Opened(settings, places)
    given = here.open(source or target or "")
    begin = given if source is not None else here.other_than(target or "")
    end = given if source is None else here.open(target) if target is not None else here.other_than(source)
    if here.name(begin) == here.name(end):
        raise StartError(f"The objects are in {here.name(begin)} already.")
    for store in (begin, end):
        if isinstance(store, S3Store):
            await store.prepare()
    say(f"From {here.name(begin)} to {here.name(end)}{', without copying anything' if dry else ''}.")
    moved = await move_all(begin, end, dry=dry, on_progress=_Progress(say))
    say(_summary(moved, dry))
    for key in moved.wrong:
        say(f"Damaged at the source, and not copied: {key}")
    if moved.wrong:
        return 1
    if delete_source and not dry:
        gone = await delete_all(begin, end, lambda _: None)
        left = moved.total_objects - gone
        say(f"Deleted {gone} objects from {here.name(begin)}.")
        if left:
            say(f"{left} objects stay there: they are not the same at the other place. Run it again.")
            return 1
    if isinstance(end, S3Store) and not dry and settings.s3_bucket != end.place.bucket:
        say(f"To use them, start Stepway with STEPWAY_S3_BUCKET={end.place.bucket}"
            f"{f' and STEPWAY_S3_PREFIX={end.place.prefix}' if end.place.prefix else ''}.")  # fmt: skip
    return 0


def _summary(moved: Moved, dry: bool) -> str:
    done = "would be copied" if dry else "copied and verified"
    same = moved.objects - moved.copied - len(moved.wrong)
    return (
        f"{moved.copied} objects ({moved.copied_bytes / 1e6:.1f} MB) {done}, {same} were there alike, "
        f"{len(moved.wrong)} are damaged."
    )


class _Opened:
    """Stores by what a person writes for them."""

    def __init__(self, settings: Settings, places: Places) -> None:
        self._settings = settings
        self._places = places

    def open(self, place: str) -> ObjectStore:
        if not place.startswith("s3://"):
            if "://" in place:
                raise StartError(f"{place} is neither a folder nor s3://bucket/prefix.")
            return DirectoryStore(Path(place).expanduser())
        parts = urlsplit(place)
        given = {"s3_bucket": parts.netloc, "s3_prefix": parts.path}
        try:
            checked = Settings.model_validate({**self._settings.model_dump(), **given})
        except ValidationError as error:
            raise StartError(f"{place} cannot be used: {_reasons(error)}") from None
        found = s3_place(checked)
        if found is None:
            raise StoreRefused(f"{place} names no bucket.")
        return S3Store(found, self._places.objects / "scratch")

    def other_than(self, place: str) -> ObjectStore:
        """The settings' own store; their folder where the place is their bucket."""
        own = s3_place(self._settings)
        if own is None and not place.startswith("s3://"):
            raise StartError("Name the bucket as well, as s3://bucket/prefix: the settings have none.")
        if own is None or self.name(self.open(place)) == f"{own.url} at {own.endpoint}":
            return DirectoryStore(self._places.objects)
        return open_store(self._settings, self._places.objects)

    def name(self, store: ObjectStore) -> str:
        if isinstance(store, S3Store):
            return f"{store.place.url} at {store.place.endpoint}"
        return str(store.root) if isinstance(store, DirectoryStore) else ""


def _reasons(error: ValidationError) -> str:
    return "; ".join(one["msg"] for one in error.errors(include_input=False, include_context=False)) + "."


class _Progress:
    """A line now and then."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._last = time.monotonic()

    def __call__(self, moved: Moved) -> None:
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            self._say(
                f"{moved.objects} of {moved.total_objects} objects, "
                f"{moved.bytes / 1e6:.0f} of {moved.total_bytes / 1e6:.0f} MB"
            )

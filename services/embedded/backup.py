"""`stepway backup`, `stepway restore` and `stepway keys rotate-encryption`: the work on a whole installation.

A backup is one archive (`services.embedded.archive`) with the database, the objects and the encryption key, so it is as
secret as the installation itself. It may be made while Stepway runs. Where the objects are in a bucket, the archive holds
them all the same, and a restore puts them into the bucket of the settings, which must be empty. It also brings an
installation to another major version of PostgreSQL: back up with the Stepway that made the data, restore with the new one.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import psycopg

from services.app.identity import rotation
from services.assembly.process import Say, StartError, configure_logs, plainly, say_aloud
from services.embedded.archive import ADMIN_KEY, CLUSTER_ID, DUMP, KEY, OBJECTS, ArchiveWriter, unpack
from services.embedded.folder import LOCK, DataFolder, InUse, Places, make_private
from services.embedded.snapshots import snapshot_of
from shared.clock import iso, now
from shared.db import dump, migrate
from shared.db.engine import Database
from shared.errors import Problem
from shared.objects.directory import DirectoryStore
from shared.objects.moving import delete_all, move_all
from shared.objects.opened import open_store
from shared.objects.store import ObjectStore
from shared.security.envelope import Keyring
from shared.settings import Settings
from stepway.postgres import programs
from stepway.postgres.embedded import EmbeddedPostgres

ROTATION_LOCK = 5308419  # of services.app.identity.rotation: while it is held, no encryption key goes away


def run_backup(settings: Settings, file: Path, say: Say = say_aloud) -> int:
    """Write a backup to `file` (0600), which must not exist. Returns the exit code."""
    configure_logs()
    return plainly(lambda: _backup(settings, file.absolute(), say))


def run_restore(settings: Settings, file: Path, say: Say = say_aloud) -> int:
    """Fill an empty data directory from a backup, wholly or not at all. Returns the exit code.

    A backup holds statements for the database: restore none that you did not make.
    """
    configure_logs()
    return plainly(lambda: _restore(settings, file.absolute(), say))


def run_rotate_encryption(settings: Settings, say: Say = say_aloud) -> int:
    """Make a new encryption key and bring every secret under it, while Stepway runs or not. Returns the exit code."""
    configure_logs()
    return plainly(lambda: _rotate(settings, say))


# ---- backup


def _backup(settings: Settings, file: Path, say: Say) -> int:
    places = Places.of(settings)
    _refuse_nothing(settings, places)
    with _database(settings, places) as url, snapshot_of(settings, places) as snapshot, ArchiveWriter(file) as archive:
        with _keys_kept(url), tempfile.TemporaryDirectory(prefix=".stepway-backup-", dir=file.parent) as folder:
            snapshot.take()
            dump.dump(url, Path(folder, DUMP))
            archive.add(DUMP, Path(folder, DUMP))
            archive.add(KEY, places.key)
        snapshot.take()  # what has come since the first look and is in the dump
        for name, path in ((ADMIN_KEY, places.admin_key), (CLUSTER_ID, places.cluster_id)):
            if path.exists():
                archive.add(name, path)
        for key, path in snapshot.objects():
            archive.add(OBJECTS + key, path)
        size = archive.finish(_about(settings))
    say(f"Backed up to {file} ({size / 1e6:.1f} MB). It holds the encryption key: keep it as secret as the data.")
    return 0


def _about(settings: Settings) -> dict[str, object]:
    """For whoever looks into the archive; a restore takes its settings from where it runs. The URL may hold a password."""
    shown = settings.model_dump(
        mode="json", exclude={"database_url", "s3_access_key", "s3_secret_key"}, exclude_defaults=True
    )
    return {
        "made_at": iso(now()), "stepway": version("stepway"), "postgres": programs.major(), "settings": shown,
    }  # fmt: skip


def _refuse_nothing(settings: Settings, places: Places) -> None:
    if not places.key.exists():
        raise StartError(f"There is nothing to back up in {places.root}: it has no encryption key {places.key}.")
    if settings.database_url is None and not (places.postgres / "pgdata").exists():
        raise StartError(f"There is no database in {places.root}; where it is elsewhere, set DATABASE_URL.")


@contextmanager
def _database(settings: Settings, places: Places) -> Iterator[str]:
    """The database's URL. The embedded one is started where no Stepway runs, and nobody else starts it meanwhile."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    folder = DataFolder(places)
    try:
        folder.open()
    except InUse:
        yield _running_url(places)
        return
    postgres = EmbeddedPostgres(places.postgres)
    try:
        yield postgres.start()
    finally:
        postgres.stop()
        folder.close()


def _running_url(places: Places) -> str:
    socket = (places.postgres / "socket").resolve()
    if not socket.is_dir():
        raise StartError(f"A Stepway uses {places.root} and its database is not ready; try again when it is.")
    return f"postgresql://stepway@/stepway?host={quote(str(socket))}&port=5432"


@contextmanager
def _keys_kept(url: str) -> Iterator[None]:
    """No rotation of the encryption keys within the block: the dump needs the keys that are copied beside it."""
    with psycopg.connect(url, autocommit=True, connect_timeout=30) as connection:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", [ROTATION_LOCK]).fetchone()
        if not row or not row[0]:
            raise StartError("The encryption keys are being rotated; back up when that is done.")
        yield


# ---- restore


def _restore(settings: Settings, file: Path, say: Say) -> int:
    if not file.is_file():
        raise StartError(f"There is no backup at {file}.")
    places = Places.of(settings)
    folder = DataFolder(places)
    folder.open(for_restore=True)
    try:
        _refuse_content(places)
        bucket: _EmptyBucket | None = None
        try:
            bucket = _EmptyBucket(settings, places) if settings.s3_bucket is not None else None
            places.restoring.touch(mode=0o600)
            made_at = _fill(settings, places, file)
            if bucket is not None:
                bucket.fill()
            places.restoring.unlink()
        except BaseException:
            _clear(places)
            if bucket is not None:
                bucket.clear()
            raise
    finally:
        folder.close()
    say(f"Restored {places.root} from the backup of {made_at}. Start it with `stepway up`.")
    return 0


class _EmptyBucket:
    """The bucket that a restore fills, by way of the folder. Raises StartError unless it is there and empty."""

    def __init__(self, settings: Settings, places: Places) -> None:
        self._settings = settings
        self._places = places
        asyncio.run(self._refuse_content())

    def fill(self) -> None:
        asyncio.run(self._fill())

    def clear(self) -> None:
        """It began empty: what is there is ours."""
        asyncio.run(self._clear())

    async def _refuse_content(self) -> None:
        store = self._store()
        await store.prepare()
        async for info in store.list():
            raise StartError(f"The bucket is not empty ({info.key}): restore into an empty bucket or prefix only.")

    async def _fill(self) -> None:
        folder, store = DirectoryStore(self._places.objects), self._store()
        moved = await move_all(folder, store)
        if moved.wrong:
            raise StartError(f"The backup is damaged: {moved.wrong[0]} is not what its name says.")
        await delete_all(folder, store, lambda _: None)

    async def _clear(self) -> None:
        store = self._store()
        for key in [info.key async for info in store.list()]:
            await store.delete(key)

    def _store(self) -> ObjectStore:
        return open_store(self._settings, self._places.objects)


def _fill(settings: Settings, places: Places, file: Path) -> object:
    for private in (places.objects, places.key.parent):
        make_private(private) if not private.exists() else None
    _refuse_small_disk(places, file)
    dumped = places.root / DUMP
    targets = {DUMP: dumped, KEY: places.key, ADMIN_KEY: places.admin_key, CLUSTER_ID: places.cluster_id}
    manifest = unpack(file, lambda name: targets.get(name) or places.objects / name.removeprefix(OBJECTS))
    Keyring.load(places.key)
    if settings.database_url is not None:
        _fill_database(settings.database_url, dumped)
    else:
        postgres = EmbeddedPostgres(places.postgres)
        try:
            _fill_database(postgres.start(), dumped)
        finally:
            postgres.stop()
    dumped.unlink()
    return manifest.get("made_at")


def _fill_database(url: str, dumped: Path) -> None:
    dump.restore(url, dumped)
    migrate.upgrade(url)


def _refuse_content(places: Places) -> None:
    """Only what is empty is filled: nothing of an installation is ever mixed with another's."""
    if entries := sorted(path.name for path in places.root.iterdir() if path.name != LOCK):
        raise StartError(f"{places.root} is not empty ({entries[0]}): restore into an empty directory only.")
    for folder in (places.objects, places.machine):
        if folder.is_dir() and any(folder.iterdir()):
            raise StartError(f"{folder} is not empty: restore into empty directories only.")
    if os.path.lexists(places.key):
        raise StartError(f"The key {places.key} is there already: a restore replaces nothing.")


def _refuse_small_disk(places: Places, file: Path) -> None:
    needed, free = file.stat().st_size, shutil.disk_usage(places.objects).free
    if needed > free:
        raise StartError(f"{places.objects} has room for {free / 1e9:.2f} GB; the backup needs {needed / 1e9:.2f} GB.")


def _clear(places: Places) -> None:
    """What a restore that failed has made. It began with nothing there."""
    for folder in (places.root, places.objects):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)
    places.key.unlink(missing_ok=True)


# ---- rotation


def _rotate(settings: Settings, say: Say) -> int:
    places = Places.of(settings)
    _refuse_nothing(settings, places)
    with _database(settings, places) as url:
        try:
            done = asyncio.run(_rotated(url, places))
        except Problem as problem:
            raise StartError(problem.detail) from problem
    say(f"{done.rewrapped} secrets are under the new key {done.active}; {len(done.retired)} old keys are gone.")
    if done.kept:
        say(f"Kept, as something may still need them: {', '.join(done.kept)}. Rotate again later.")
    if done.unreadable:
        say(f"No key opens: {', '.join(done.unreadable)}. Enter these secrets anew.")
    return 1 if done.unreadable else 0


async def _rotated(url: str, places: Places) -> rotation.Rotation:
    database = Database(url, pool_size=3)
    try:
        return await rotation.rotate(database, Keyring.load(places.key))
    finally:
        await database.close()

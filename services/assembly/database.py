"""`stepway db …`: the database of an installation whose services only use it. Each command is safe to repeat."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from services.app.identity import bootstrap
from services.assembly.process import Say, StartError, configure_logs, plainly, say_aloud
from shared.db import dump, migrate
from shared.db.engine import Database
from shared.security.envelope import Keyring
from shared.settings import Settings


def run_upgrade(settings: Settings, say: Say = say_aloud) -> int:
    """Migrate to this version's schema. One of a later version is left as it is."""

    def work() -> int:
        url = _url(settings)
        if migrate.compare(url) == "ahead":
            say("The database has the schema of a later version already.")
            return 0
        migrate.upgrade(url)
        say("The database is up to date.")
        return 0

    return _plainly(work)


def run_check(settings: Settings, say: Say = say_aloud) -> int:
    def work() -> int:
        found = migrate.compare(_url(settings))
        if found == "behind":
            say("The database is behind this version: run `stepway db upgrade`.")
            return 1
        say("The database is up to date." if found == "current" else "The database is of a later version.")
        return 0

    return _plainly(work)


def run_dump(settings: Settings, file: Path, say: Say = say_aloud) -> int:
    def work() -> int:
        if file.exists():
            raise StartError(f"{file} is there already.")
        dump.dump(_url(settings), file)
        say(f"Dumped to {file} ({file.stat().st_size / 1e6:.1f} MB). Keep the encryption key apart from it.")
        return 0

    return _plainly(work)


def run_restore(settings: Settings, file: Path, say: Say = say_aloud) -> int:
    def work() -> int:
        dump.restore(_url(settings), file)
        say("Restored. `stepway db upgrade` brings it to this version.")
        return 0

    return _plainly(work)


def run_admin_key(settings: Settings, say: Say = say_aloud) -> int:
    """Prints the key of the first admin, who is made now, and nothing else."""

    def work() -> int:
        key = asyncio.run(_first_key(settings))
        if key is None:
            raise StartError("There is an admin already; a key can be made with `stepway keys create`.")
        say(key)
        return 0

    return _plainly(work)


def run_make_key(file: Path, say: Say = say_aloud) -> int:
    """Make an encryption key in a file, unless one is there."""

    def work() -> int:
        made = not file.exists()
        Keyring.load_or_create(file)
        say(f"{'Made' if made else 'There is'} the encryption key {file}. Without it, no secret can be read again.")
        return 0

    return _plainly(work)


async def _first_key(settings: Settings) -> str | None:
    async def kept(_key: str) -> None:
        """By whoever reads it: it is printed once it counts."""

    database = Database(_url(settings), pool_size=2)
    try:
        return await bootstrap.ensure_admin(database, kept)
    finally:
        await database.close()


def _url(settings: Settings) -> str:
    if settings.database_url is None:
        raise StartError("Set DATABASE_URL: an installation that runs as services has its database elsewhere.")
    return settings.database_url


def _plainly(work: Callable[[], int]) -> int:
    configure_logs()
    return plainly(work)

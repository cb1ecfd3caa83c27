"""Dump a database into a file and restore it: for backups, and to move the data to another PostgreSQL major.

The programs come from `stepway.postgres.programs`. Works on any server that the URL names, the embedded one included.
"""

import os
import subprocess
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from stepway.postgres import programs
from stepway.postgres.programs import PostgresError

# What a user can have made: schemas, and anything in `public`. Extensions count too, as a restore would clash with them.
CONTENTS = sql.SQL("""
SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('public', 'information_schema')
UNION ALL SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('public')
UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace('public')
UNION ALL SELECT typname FROM pg_type WHERE typnamespace = to_regnamespace('public') AND typcategory <> 'A'
UNION ALL SELECT extname FROM pg_extension WHERE extname <> 'plpgsql'
LIMIT 1
""")


def dump(url: str, path: Path) -> None:
    """Write the database into `path` (0600, PostgreSQL's custom format), which appears only when it is complete.

    A consistent snapshot; others may write meanwhile. Raises PostgresError.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _run("pg_dump", url, "--format=custom", "--no-owner", "--no-privileges", f"--file={part}")
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise PostgresError(f"The dump {path} cannot be written: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)


def restore(url: str, path: Path) -> None:
    """Fill an empty database from a dump, wholly or not at all.

    A dump holds statements, and they run with the rights of the URL's user: restore none that you did not make.
    Raises PostgresError: the database is not empty, or the file is no dump or of a later version.
    """
    if not path.is_file():
        raise PostgresError(f"There is no dump at {path}.")
    _refuse_content(url)
    options = ("--format=custom", "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges")
    _run("pg_restore", url, *options, str(path.absolute()))


def _refuse_content(url: str) -> None:
    try:
        with psycopg.connect(_conninfo(url), connect_timeout=30) as connection:
            found = connection.execute(CONTENTS).fetchone()
            name = connection.info.dbname
    except psycopg.Error as error:
        raise PostgresError(f"The database cannot be read: {programs.telling_line(str(error))}.") from error
    if found:
        raise PostgresError(
            f"The database {name} is not empty (it holds {found[0]}): restore into an empty database only."
        )


def _run(name: str, url: str, *arguments: str) -> None:
    """Run a program on the database. The password goes by the environment: others can read command lines."""
    given = conninfo_to_dict(_conninfo(url))
    if given.pop("sslpassword", None):
        raise PostgresError("A password for the client's TLS key cannot be handed on safely: use a key without one.")
    password = given.pop("password", None)
    result = subprocess.run(
        [programs.program(name), "--no-password", f"--dbname={make_conninfo('', **given)}", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**programs.environment(), **_libpq(), **({"PGPASSWORD": str(password)} if password else {})},
    )
    if result.returncode:
        raise PostgresError(f"{name} failed: {programs.telling_line(result.stderr)}.")


def _libpq() -> dict[str, str]:
    """libpq's own variables, which psycopg heeds as well; and HOME, for its password file and certificates."""
    return {name: value for name, value in os.environ.items() if name.startswith("PG") or name == "HOME"}


def _conninfo(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)  # as SQLAlchemy writes it


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

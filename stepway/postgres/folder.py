"""The folder of an embedded PostgreSQL: who holds it, what lies in it, where the socket is.

Two locks guard it. `lock` is held by the one Stepway that uses the folder. `server.lock` is inherited by PostgreSQL, so
it is held as long as any of its processes lives: after a kill -9 of Stepway it tells when the last of them is gone.
Used by `embedded`.
"""

import fcntl
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path

from stepway.postgres.programs import PostgresError

LOG_BYTES = 5 * 1024**2  # a larger log is put aside at the next start, as postgres.log.1
ORPHAN_SECONDS = 10.0
SOCKET_PATH_BYTES = 100  # the system's limit is 107, of which macOS takes 4
SOCKET_FILE = "/.s.PGSQL.5432"
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")  # libpq reads commas in a host as a list, PostgreSQL quotes as quotes


class Folder:
    """`path` and what is below it. `claim` comes first, `release` last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pgdata = path / "pgdata"
        self.socket_dir = path / "socket"
        self._new = path / "pgdata.new"
        self._lock: int | None = None
        self._server_lock: int | None = None
        self._made = False
        self._complete = False

    @property
    def inherited(self) -> tuple[int, ...]:
        """File descriptors for PostgreSQL to hold."""
        return () if self._server_lock is None else (self._server_lock,)

    def version(self) -> str | None:
        """The major version of the data, or None where there is none. Raises PostgresError when they cannot be read."""
        if not os.path.lexists(self.pgdata):
            return None
        try:
            return (self.pgdata / "PG_VERSION").read_text().strip()
        except OSError as error:
            raise PostgresError(f"The database in {self.path} cannot be read: {error.strerror}.") from error

    def owner(self) -> int:
        """The uid that the data belong to."""
        return (self.pgdata if self.pgdata.exists() else self.path).stat().st_uid

    def free_bytes(self) -> int:
        place = next(place for place in (self.path, *self.path.parents) if place.exists())
        room = os.statvfs(place)
        return room.f_bavail * room.f_frsize

    def claim(self) -> None:
        """Make the folder if needed and hold it. Raises PostgresError when another holds it, or it is not ours."""
        try:
            self._made = not self.path.exists()
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._refuse_strange()
            self._lock = self._take("lock", 0.0, "Stepway is already running")
            self.path.chmod(0o700)
            left = "the PostgreSQL of a Stepway that was killed has not ended yet"
            self._server_lock = self._take("server.lock", ORPHAN_SECONDS, left)
        except OSError as error:
            self.release()
            raise PostgresError(f"The folder {self.path} cannot be used: {error.strerror}.") from error
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go. Where a first start failed, nothing of it stays."""
        if self._lock is not None:
            shutil.rmtree(self._new, ignore_errors=True)
            self._remove_socket_dir()
            if self._made and not self.pgdata.exists():
                shutil.rmtree(self.path, ignore_errors=True)
        for descriptor in (self._server_lock, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._lock = self._server_lock = None
        self._made = False

    def make_new(self) -> Path:
        """An empty folder for initdb; what a start that was cut off left there is removed."""
        shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir(mode=0o700)
        return self._new

    def keep_new(self) -> None:
        self._new.rename(self.pgdata)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def make_socket_dir(self) -> Path:
        """A private folder for the socket: here, or where this path is too long or unusual, among temporary files."""
        self._remove_socket_dir()
        here = self.path / "socket"
        if _fits(here):
            here.mkdir(mode=0o700)
            self.socket_dir = here
            return here
        for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108  mkdtemp makes it private and unguessable
            if _fits(Path(parent, "stepway-12345678")):
                self.socket_dir = Path(tempfile.mkdtemp(prefix="stepway-", dir=parent))
                here.symlink_to(self.socket_dir)  # so that a start after kill -9 finds and removes it
                return self.socket_dir
        raise PostgresError("No folder for temporary files has a path short enough for a socket: set TMPDIR.")

    def open_log(self, *, in_memory: bool) -> int:
        """A descriptor to write to and read from. In memory, where the disk has no room for the reason of a failure."""
        if in_memory and hasattr(os, "memfd_create"):
            return os.memfd_create("postgres.log")
        log = self.path / "postgres.log"
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.rename(log.with_suffix(".log.1"))
        return self._open("postgres.log", os.O_APPEND)

    def ready(self, pid: int) -> bool:
        """Whether the server with this process id says in its pid file that it accepts connections."""
        lines = self._pid_file()
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def forget_stale_pid(self) -> None:
        """After a crash, the number in the pid file may belong to any other process, which would stop the start.

        We hold both locks, so none of ours is left. Someone may yet have started PostgreSQL here by hand: a process
        that works in this folder, or might, is left for PostgreSQL itself to judge.
        """
        pid = self._pid()
        if pid is None or not Path("/proc", str(pid)).exists():
            return
        try:
            elsewhere = Path("/proc", str(pid), "cwd").readlink() != self.pgdata.resolve()
        except OSError:
            elsewhere = Path("/proc", str(pid), "comm").read_text().strip() != "postgres"
        if elsewhere:
            (self.pgdata / "postmaster.pid").unlink(missing_ok=True)

    def _refuse_strange(self) -> None:
        known = {"lock", "pgdata", "pgdata.new", "server.lock"}
        names = {entry.name for entry in self.path.iterdir()}
        if names and not names & known:
            raise PostgresError(f"The folder {self.path} is not empty, and holds no database of Stepway.")

    def _take(self, name: str, patience: float, holder: str) -> int:
        """Open a lock file and lock it, waiting up to `patience` seconds for an orphan to end; `holder` is for people."""
        descriptor = self._open(name, 0)
        deadline = time.monotonic() + patience
        hurry = time.monotonic() + patience / 2
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise PostgresError(f"The database in {self.path} is in use: {holder}.") from None
                if time.monotonic() >= hurry:
                    self._end_orphan()
                    hurry = deadline
                time.sleep(0.02)
            else:
                return descriptor

    def _end_orphan(self) -> None:
        """No Stepway holds the folder, but a PostgreSQL that it left does."""
        pid = self._pid()
        try:
            sure = sys.platform != "linux" or Path("/proc", str(pid), "cwd").readlink() == self.pgdata.resolve()
            if pid is not None and sure:
                os.kill(pid, signal.SIGQUIT)
        except OSError:
            pass  # it has ended, or is not ours to end: the wait goes on, and then says so

    def _open(self, name: str, flags: int) -> int:
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | flags, 0o600)
        if os.geteuid() == 0:  # in a folder of an ordinary user, that user must be able to come back
            folder = self.path.stat()
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
        return descriptor

    def _pid_file(self) -> list[str]:
        try:
            return (self.pgdata / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _pid(self) -> int | None:
        lines = self._pid_file()
        return int(lines[0]) if lines and lines[0].isdigit() and int(lines[0]) > 0 else None

    def _remove_socket_dir(self) -> None:
        here = self.path / "socket"
        if here.is_symlink():
            target = here.readlink()
            if target.name.startswith("stepway-") and _is_private_dir(target):
                shutil.rmtree(target, ignore_errors=True)
            here.unlink()
        else:
            shutil.rmtree(here, ignore_errors=True)


def _fits(folder: Path) -> bool:
    text = str(folder)
    return PLAIN_PATH.fullmatch(text) is not None and len(os.fsencode(text + SOCKET_FILE)) < SOCKET_PATH_BYTES


def _is_private_dir(path: Path) -> bool:
    """A folder, no link, that nobody but its owner may enter: we make no other."""
    try:
        info = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and stat.S_IMODE(info.st_mode) == 0o700

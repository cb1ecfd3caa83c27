"""Processes of the test bed: started with a log each, watched, stopped by their id.

`Processes` is for servers of this machine; `tests.testbed.space` has the same for those of a cluster with pods.
"""

import contextlib
import fcntl
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

STOP_SECONDS = 10.0
LONGEST_PAUSE = 0.4  # seconds between two looks
_PORTS = range(10_000, 30_000)  # below those that a system gives to connections, and to services of a cluster
_GIVEN: set[int] = set()


class StartError(RuntimeError):
    """A server did not come up. Its message ends with what the servers logged last."""


class Processes:
    """Named servers with their logs in one folder. One name is one process at a time. Safe to stop twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {}
        self._environments: dict[str, Mapping[str, str]] = {}

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """`environment` is added to what a server gets anyway: a path, and the folder as its home."""
        self._commands[name] = [str(part) for part in command]
        self._environments[name] = environment or {}
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*self._prefix(), *self._commands[name]],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder), **self._environments[name]},
            )

    def restart(self, name: str) -> None:
        """Start again, with the same arguments, what was killed or stopped."""
        self.start(name, self._commands[name], self._environments[name])

    def pid(self, name: str) -> int:
        """The process id, as this machine sees it."""
        return self._running[name].pid

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal: SIGSTOP and SIGCONT make a server hang and go on. One that has ended is left alone."""
        if self._running[name].poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid(name), number)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(name, signal.SIGKILL)
        self._running[name].wait(STOP_SECONDS)

    def stop(self, name: str) -> None:
        """SIGTERM, then SIGKILL after a while; returns when it is gone."""
        self.signal(name, signal.SIGTERM)
        self.signal(name, signal.SIGCONT)
        try:
            self._running[name].wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill(name)

    def stop_all(self) -> None:
        for name in reversed(self._running):
            self.stop(name)

    def ended(self) -> list[str]:
        """Names of those that have ended, by whatever cause."""
        return [name for name, process in self._running.items() if process.poll() is not None]

    def wait(
        self, what: str, ready: Callable[[], bool], *, seconds: float, servers: Collection[str] | None = None
    ) -> None:
        """Until `ready` says so. Raises StartError if time is up or one of `servers`, else of all, has ended."""
        deadline, pause = time.monotonic() + seconds, 0.05
        while time.monotonic() < deadline:
            if ready():
                return
            if ended := [name for name in self.ended() if servers is None or name in servers]:
                raise StartError(f"{', '.join(ended)} ended before {what}\n{self.logs()}")
            time.sleep(pause)
            pause = min(1.2 * pause, LONGEST_PAUSE)  # asking takes time from what is asked, where there is little
        raise StartError(f"not within {seconds:g} seconds: {what}\n{self.logs()}")

    def logs(self, characters: int = 1500) -> str:
        """The end of every log."""
        found = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {path.stem}\n{path.read_text(errors='replace')[-characters:]}" for path in found)

    def _prefix(self) -> list[str]:
        """What makes a server end when the thread that started it dies by SIGKILL, where the machine can."""
        return ["setpriv", "--pdeathsig=KILL", "--"] if shutil.which("setpriv") else []


class Folder:
    """A folder under the system's own for temporary files, gone at `close`, or cleared by a later one of its kind."""

    def __init__(self, kind: str) -> None:
        root = Path(tempfile.gettempdir())
        for old in root.glob(f"stepway-{kind}-*/lock"):
            _remove_if_free(old.parent)
        made = Path(tempfile.mkdtemp(prefix=f".stepway-{kind}-"))
        self._lock = os.open(made / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = made.rename(root / made.name[1:])  # in sight of others only once it is locked

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_if_free(folder: Path) -> None:
    """Unless a living process holds it."""
    with contextlib.suppress(OSError), (folder / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens. None is given to a connection meanwhile, and none is given out twice.

    Their servers start later: so what was given out counts as taken, for this process and, until it ends, for all test runs
    of this machine.
    """
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(_PORTS)
        if port not in _GIVEN:
            _GIVEN.add(port)
            with contextlib.suppress(OSError):
                fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
                socket.create_server(("127.0.0.1", port)).close()
                found.append(port)
    return found


@functools.cache
def _locks() -> BinaryIO:
    """The byte at a port's number is locked by the process that was given the port. It stays open: closing it unlocks all."""
    return (Path(tempfile.gettempdir()) / f"stepway-testbed-ports-{os.getuid()}").open("ab")

"""`--reload`: the file is served by a child process, and a changed one by the next child on the same socket.

The parent holds the socket and the embedded PostgreSQL, and loads nothing of the user's. A new child takes over when it is
ready; one that does not get so far says why, and the one before it goes on. Children end with their parent.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from stepway.runner import settings
from stepway.runner.process import STOPPING, listen, say

if TYPE_CHECKING:
    from stepway.postgres.embedded import EmbeddedPostgres

VARIABLE = "STEPWAY_RUNNER_CHILD"  # what a child inherits, as JSON
EVERY = 0.3  # seconds between two looks at the files
MOST = 20_000  # files and folders that are looked at
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}

Snapshot = dict[str, tuple[int, int, int]]


# ---- in the child


@dataclass(frozen=True, slots=True)
class Child:
    """What a child has of its parent: sockets, a pipe that says that it is ready, one that ends when the parent has."""

    listeners: list[socket.socket]
    ready_fd: int
    life_fd: int

    @classmethod
    def of_environment(cls) -> "Child | None":
        """None in a process that no reloader has started. Takes the flags that the parent was given, too."""
        text = os.environ.pop(VARIABLE, None)
        if text is None:
            return None
        told = json.loads(text)
        settings.remember(settings.said(told["flags"]))
        for number in (*told["listeners"], told["ready"], told["life"]):
            os.set_inheritable(number, False)
        return cls([socket.socket(fileno=number) for number in told["listeners"]], told["ready"], told["life"])

    def ready(self) -> None:
        os.write(self.ready_fd, b"1")
        os.close(self.ready_fd)

    def watch_parent(self) -> None:
        threading.Thread(target=self._end_with_parent, name="stepway-parent", daemon=True).start()

    def _end_with_parent(self) -> None:
        os.read(self.life_fd, 1)
        os.kill(os.getpid(), signal.SIGTERM)


# ---- in the parent


class _Version:
    """A child that serves one state of the files, or is about to."""

    def __init__(self, file: str, told: Mapping[str, Any], listeners: list[socket.socket], life: int) -> None:
        self.serves = False
        self._ready, ready = os.pipe()
        numbers = [one.fileno() for one in listeners]
        handed = {**told, "listeners": numbers, "ready": ready, "life": life}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stepway.runner", file],
                env={**os.environ, VARIABLE: json.dumps(handed), "PYTHONDONTWRITEBYTECODE": "1"},
                pass_fds=(*numbers, ready, life),
                start_new_session=True,  # Ctrl-C in a terminal is for the parent
            )
        finally:
            os.close(ready)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def became_ready(self) -> bool:
        """Whether it began to serve since the last call."""
        if self.serves or self._ready == -1 or not select.select([self._ready], [], [], 0)[0]:
            return False
        self.serves = os.read(self._ready, 1) == b"1"
        self.close()
        return self.serves

    def close(self) -> None:
        if self._ready != -1:
            os.close(self._ready)
            self._ready = -1

    def stop(self) -> None:
        if not self.ended:
            self.process.terminate()


class Reloader:
    """The parent. `run` blocks until a signal."""

    def __init__(self, file: str, flags: Mapping[str, str | None]) -> None:
        from stepway.runner.loading import target

        self._file = file
        found = target(file)
        self._folder, self._shown = found.path.resolve().parent, found.shown
        self._config = settings.config()
        self._told = {"flags": {name: text for name, text in flags.items() if name != "data_dir"}}
        self._current: _Version | None = None
        self._coming: _Version | None = None
        self._leaving: list[_Version] = []
        self._asked = threading.Event()
        self._postgres: EmbeddedPostgres | None = None

    def run(self) -> int:
        """Serve, and look at the files, until a signal. Raises StartError, PostgresError, SettingError."""
        from stepway.runner.command import refuse_strangers

        config = self._config
        keys = config.asks_keys
        host = config.host or ("0.0.0.0" if keys else "127.0.0.1")  # noqa: S104 (with keys)
        refuse_strangers(host, open_to_all=keys or config.insecure)
        self._listeners = listen(host, config.port)
        self._life = os.pipe()
        for number in STOPPING:
            signal.signal(number, self._signalled)
        if config.data_dir is not None:
            return self._with_postgres(config.data_dir)
        if config.database is None:
            say("runs live in memory: those that run are lost when a file changes; --data-dir FOLDER keeps them")
        return self._watch()

    def _with_postgres(self, folder: Path) -> int:
        """It must outlive the children, so it is the parent's."""
        from stepway.postgres.embedded import EmbeddedPostgres

        self._postgres = EmbeddedPostgres(folder)
        self._told["flags"]["database"] = self._postgres.start()
        os.environ.pop("STEPWAY_RUNNER_DATA_DIR", None)
        try:
            return self._watch()
        finally:
            self._postgres.stop()

    def _mind_postgres(self) -> None:
        """Start it again when it has ended by itself."""
        if self._postgres is None or self._postgres.running:
            return
        say("PostgreSQL has ended by itself, and is started again")
        self._postgres.stop()
        url = self._postgres.start()
        if url != self._told["flags"]["database"]:
            self._told["flags"]["database"] = url
            self._begin()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set():
            for one in self._all():
                one.process.kill()
            os._exit(128 + number)
        self._asked.set()

    def _watch(self) -> int:
        seen = self._look()
        self._begin()
        while not self._asked.wait(EVERY):
            now = self._look()
            if changed := {path for path in seen.keys() | now.keys() if seen.get(path) != now.get(path)}:
                seen = now
                say(f"{_shown(changed)} changed: {self._shown} is loaded again")
                self._begin()
            self._turn()
            self._mind_postgres()
        return self._end()

    def _begin(self) -> None:
        self._turn()  # one that is ready since the last look is the one before, and not overtaken
        if self._coming is not None:  # overtaken
            self._let_go(self._coming)
        self._coming = _Version(self._file, self._told, self._listeners, self._life[0])

    def _turn(self) -> None:
        """Put the new child in the place of the old one when it is ready; tell of children that have ended."""
        coming = self._coming
        if coming is not None and coming.became_ready():
            if self._current is not None:
                self._let_go(self._current)
            self._current, self._coming = coming, None
        elif coming is not None and coming.ended:
            self._let_go(coming)
            self._coming = None
            say("it is served as it was before" if self._current else "nothing is served until a file changes")
        if self._current is not None and self._current.ended:
            say(f"the server has ended by itself (exit {self._current.process.returncode}); it waits for a change")
            self._current = None
        self._leaving = [one for one in self._leaving if not one.ended]

    def _let_go(self, one: _Version) -> None:
        one.close()
        one.stop()
        self._leaving.append(one)

    def _all(self) -> Iterator[_Version]:
        yield from (one for one in (self._current, self._coming, *self._leaving) if one is not None)

    def _end(self) -> int:
        for one in self._listeners:
            one.close()
        for version in (self._current, self._coming):
            if version is not None:
                version.stop()
        until = time.monotonic() + self._config.drain + 0.5
        for version in self._all():
            try:
                version.process.wait(max(until - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                version.process.kill()
                version.process.wait()
        return 0

    # the files

    def _look(self) -> Snapshot:
        """The Python files below the folder, and what changes when they do."""
        found: Snapshot = {}
        left = MOST
        folders = [str(self._folder)]
        while folders and left > 0:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        left -= 1
                        if entry.is_dir(follow_symlinks=False):
                            if self._is_project(entry):
                                folders.append(entry.path)
                        elif entry.name.endswith(".py"):
                            status = entry.stat()
                            found[entry.path] = (status.st_mtime_ns, status.st_size, status.st_ino)
            except OSError:  # it went meanwhile, or is not for us
                continue
        return found

    def _is_project(self, entry: "os.DirEntry[str]") -> bool:
        """Not what others installed, and not the folder of the database."""
        if entry.name.startswith(".") or entry.name in _SKIPPED or Path(entry.path, "pyvenv.cfg").exists():
            return False
        data = self._config.data_dir
        return data is None or Path(entry.path) != data.resolve()


def _shown(paths: set[str]) -> str:
    names = sorted(Path(path).name for path in paths)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

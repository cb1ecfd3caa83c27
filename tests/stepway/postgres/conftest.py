"""What the tests of the embedded PostgreSQL share: servers in processes of their own, and looks at processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepway.postgres.embedded import EmbeddedPostgres

REPOSITORY = Path(__file__).parents[3]
HOLDER = ("-m", "tests.stepway.postgres.holder")


class Holder:
    """The program `holder.py` with its server running, or failed: then `url` is empty and `error` says why."""

    def __init__(self, *command: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def begin(self, line: str = "") -> "Holder":
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        self.url = self.process.stdout.readline().strip()
        self.error = "" if self.url else self.process.stderr.read()
        return self

    def end(self, number: int) -> str:
        self.process.send_signal(number)
        return self.process.communicate(timeout=20)[0]


@pytest.fixture
def hold() -> Iterator[Callable[..., Holder]]:
    """Starts a server in a process of its own, by `hold(data_dir)`."""
    holders: list[Holder] = []

    def start(data_dir: Path, *more: str) -> Holder:
        holder = Holder(sys.executable, *HOLDER, str(data_dir), *more)
        holders.append(holder)
        return holder.begin()

    yield start
    for holder in holders:
        if holder.process.poll() is None:
            holder.end(signal.SIGTERM)


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server on `tmp_path / "db"`, not started yet; stopped after the test."""
    server = EmbeddedPostgres(tmp_path / "db")
    yield server
    server.stop()


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "pgdata" / "postmaster.pid").read_text().split()[0])


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def processes_in(data_dir: Path) -> list[int]:
    """The processes that work in the data: PostgreSQL's, all of them."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == data_dir / "pgdata":
                found.append(int(entry.name))
        except OSError:
            continue  # it has just ended, or is not ours to look at
    return found

"""Real processes of `stepway serve` for tests, on free ports; everything that they print is kept."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from stepway.runner.settings import SETTINGS

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[3]
SERVE = ("-m", "stepway", "serve")
RUNNER = ("-m", "stepway.runner")
PATIENCE = 60.0  # seconds, for a busy machine
AT = re.compile(r"serving .* at (http://\S+?)[; ]")


def environment(**given: str) -> dict[str, str]:
    """This process's, without what the person who runs the tests has set."""
    kept = {name: text for name, text in os.environ.items() if name not in {one.variable for one in SETTINGS}}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "TERM": "dumb", "COLUMNS": "200", **given}


def until(what: Callable[[], T]) -> T:
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end, "It did not come about"
        time.sleep(0.03)
    return found


class Program:
    """A process that serves."""

    def __init__(self, arguments: Sequence[str], folder: Path, *, python: str = sys.executable, **given: str) -> None:
        self._log = folder / "printed.log"
        self._log.write_text("")
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(
                [python, *arguments], cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=environment(**given), start_new_session=True,
            )  # fmt: skip

    @property
    def printed(self) -> str:
        return self._log.read_text()

    @property
    def url(self) -> str:
        """Where it serves, once it has said so and answers."""

        def answers() -> str | None:
            assert self.process.poll() is None, self.printed
            found = AT.search(self.printed)
            return found[1].replace("0.0.0.0", "127.0.0.1") if found and _healthy(found[1]) else None

        return until(answers) or ""

    def says(self, text: str, times: int = 1) -> None:
        """Wait until it has printed this."""
        until(lambda: self.printed.count(text) >= times or self._must_live(text))

    def _must_live(self, text: str) -> bool:
        assert self.process.poll() is None or text in self.printed, self.printed
        return False

    def run(self, workflow: str, /, **start: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/workflows/{workflow}/run", json={"start_event": start}, timeout=PATIENCE)

    def end(self, number: int) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health".replace("0.0.0.0", "127.0.0.1"), timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def program(arguments: Sequence[str], folder: Path, **given: str) -> Iterator[Program]:
    started = Program(arguments, folder, **given)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait()


def ended(arguments: Sequence[str], folder: Path, **given: str) -> "subprocess.CompletedProcess[str]":
    """A command that ends by itself."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(**given), capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip

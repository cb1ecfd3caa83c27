"""The demo's server: `stepway up` as a child process, which never outlives the demo."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START_SECONDS = 180.0
STOP_SECONDS = 10.0


class ServerFailed(Exception):
    """The server did not start, or has ended; the message is a sentence, with the server's own words."""


class Existing:
    """A Stepway that somebody else runs, by its address and the file with a key of an admin's. Used as `Server` is."""

    has_ended = False

    def __init__(self, url: str, key_file: Path) -> None:
        self.url = url.rstrip("/")
        self.key_file = key_file.expanduser().absolute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It was there before, and stays."""

    def key(self) -> str:
        return self.key_file.read_text().strip()


class Server:
    """Use as a context: the server is ready inside of it, and stopped after it. `url` and `key_file` are its ready file's.

    `settings` are variables for its environment.
    """

    def __init__(self, data_dir: Path, model_root: Path, port: int, settings: Mapping[str, str]) -> None:
        self.log = data_dir / "server.log"
        self.url = ""
        self.key_file = Path()
        self._data_dir = data_dir
        self._ready = data_dir / "ready.json"
        self._command = [
            sys.executable, "-m", "stepway", "up", "--data-dir", str(data_dir), "--port", str(port), "--ready-file",
            str(self._ready), "--model-root", str(model_root), "--log-json",
        ]  # fmt: skip
        self._settings = dict(settings)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._start()
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def key(self) -> str:
        return self.key_file.read_text().strip()

    def _start(self) -> None:
        # The demo is to run alike everywhere: settings of another installation are not for it.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STEPWAY_")}
        environment.pop("DATABASE_URL", None)
        self._started_at = time.time()
        with self.log.open("wb") as log:  # a Ctrl-C at the terminal is the demo's: it stops the server once it is done
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment | self._settings,
                process_group=0,
            )  # fmt: skip

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerFailed(f"The server did not start. {self._last_words()}")
            if (ready := self._read_ready()) is not None:
                if ready["admin_key_file"] is None:
                    raise ServerFailed("The data directory has no admin's key.")
                self.url, self.key_file = ready["url"], Path(ready["admin_key_file"])
                return
            time.sleep(0.02)
        raise ServerFailed(f"The server was not ready within {START_SECONDS:g} s.")

    def _read_ready(self) -> dict[str, Any] | None:
        """The ready file of this very process: one that a killed server left behind is not it."""
        try:
            ready: dict[str, Any] = json.loads(self._ready.read_text())
        except (OSError, ValueError):
            return None
        assert self._process is not None
        return ready if ready["pid"] == self._process.pid else None

    def _last_words(self) -> str:
        """What the server said to a person before it ended."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("stepway: ")]
        return lines[-1].removeprefix("stepway: ") if lines else ""

    def stop(self) -> None:
        """Stops the server and with it its workers and its database. May be repeated."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

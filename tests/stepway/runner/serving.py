"""Real `stepway serve` processes for tests: started, asked, killed, frozen."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).parents[3]
START = 60.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Server:
    """One server process; `url` is where it serves."""

    def __init__(
        self, file: Path, *flags: str, log: Path, environment: dict[str, str] | None = None, wait: bool = True,
        port: int | None = None,
    ) -> None:  # fmt: skip
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stepway", "serve", str(file), "--host", "127.0.0.1", "--port", str(self.port), *flags],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=file.parent,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
            )  # fmt: skip
        if wait:
            self.ready()

    def ready(self) -> None:
        until = time.monotonic() + START
        while time.monotonic() < until:
            assert self.process.poll() is None, f"It ended: {self.log.read_text()[-3000:]}"
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"It is not ready: {self.log.read_text()[-3000:]}")

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        return httpx.request(method, f"{self.url}{path}", timeout=60, **given)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def died(self, timeout: float = 60) -> int:
        return self.process.wait(timeout)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def serving(file: Path, *flags: str, log: Path, **given: Any) -> Iterator[Server]:
    server = Server(file, *flags, log=log, **given)
    try:
        yield server
    finally:
        server.kill()


def until(what: Any, timeout: float = 60, every: float = 0.05) -> Any:
    """Wait for something true; what it was."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(every)
    raise AssertionError("It did not come about in time")

"""Prefect beside us: its server on a database of our own PostgreSQL, and a process that runs its flows (`flows_prefect`)."""

import json
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg

from tests.bench import peers
from tests.bench.memory import megabytes
from tests.bench.server import with_descendants
from tests.testbed.processes import free_ports

START_SECONDS = 120.0
END_SECONDS = 10.0
DATABASE = "bench_prefect"
_RECORDED = "SELECT count(*) FROM task_run WHERE state_type = 'COMPLETED'"


class Prefect:
    """Use as `with Prefect(url, folder) as prefect`; `url` is that of any database of the server. The folder is its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self.database_url = urlunsplit(urlsplit(url)._replace(path=f"/{DATABASE}"))
        self._tasks = 0  # that have been run
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        programs = peers.environment()
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        self._folder.mkdir()
        [port] = free_ports(1)
        environment = self._environment(port)
        try:
            with (self._folder / "log").open("w") as log:
                server = [str(programs / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
                self._processes.append(subprocess.Popen(server, env=environment, stdout=log, stderr=log, text=True))
                self._wait_until_ready(f"http://127.0.0.1:{port}/api/health")
                runner = [str(programs / "python"), str(Path(__file__).with_name("flows_prefect.py"))]
                self._runner = subprocess.Popen(
                    runner, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                )
                self._processes.append(self._runner)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def measure(self, what: str, count: int, tasks: int) -> Any:
        """Seconds of one measurement of `flows_prefect`, which runs so many tasks."""
        assert self._runner.stdin is not None
        assert self._runner.stdout is not None
        self._runner.stdin.write(json.dumps({"what": what, "count": count}) + "\n")
        self._runner.stdin.flush()
        line = self._runner.stdout.readline()
        if not line:
            raise RuntimeError(f"Prefect has ended:\n{(self._folder / 'log').read_text()[-2000:]}")
        self._tasks += tasks
        return json.loads(line)

    def recorded(self, seconds: float) -> float:
        """How long it takes until its server has recorded all tasks that have been run; at most so many seconds."""
        began = time.perf_counter()
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            while (taken := time.perf_counter() - began) < seconds:
                row = connection.execute(_RECORDED).fetchone()
                if row is not None and row[0] >= self._tasks:
                    break
                time.sleep(0.05)
        return taken

    def memory(self) -> float:
        """Megabytes of its processes."""
        return sum(size for process in self._processes for _, size in megabytes(with_descendants(process.pid)))

    def _environment(self, port: int) -> dict[str, str]:
        """It keeps to itself: its own home, no telemetry, nothing to fetch."""
        database = urlunsplit(urlsplit(self.database_url)._replace(scheme="postgresql+asyncpg"))
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "PREFECT_HOME": str(self._folder / "prefect"),
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        }

    def _wait_until_ready(self, url: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if httpx.get(url, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass  # not yet
            if self._processes[0].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Prefect did not start:\n{(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def _end(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

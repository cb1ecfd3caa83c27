"""`stepway serve --data-dir`: runs outlive the process, and the PostgreSQL in the folder lives and ends with it."""

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stepway.cli.serve_process import RUNNER, Program, ended, program, until

FLOW = """
import asyncio
from pathlib import Path
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent

class Half(Event):
    pass

class Long(Workflow):
    @step
    async def first(self, ev: StartEvent) -> Half:
        with Path("first").open("a") as log:
            log.write("x")
        return Half()
    @step
    async def second(self, ev: Half) -> StopEvent:
        with Path("second").open("a") as log:
            log.write("x")
        while not Path("go").exists():
            await asyncio.sleep(0.02)
        return StopEvent(result="done")

long = Long(timeout=None)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "flow.py").write_text(FLOW)
    return tmp_path


def durable(folder: Path, *flags: str) -> AbstractContextManager[Program]:
    return program([*RUNNER, "flow.py", "--port", "0", "--data-dir", "data", *flags], folder)


def begin(server: Program) -> str:
    answer = httpx.post(f"{server.url}/workflows/long/run-nowait", json={}, timeout=60)
    handler: str = answer.json()["handler_id"]
    return handler


def result(server: Program, handler: str) -> Any:
    url = f"{server.url}/results/{handler}"
    until(lambda: httpx.get(url, timeout=60).status_code == 200)
    return httpx.get(url, timeout=60).json()["result"]


def postgres_of(folder: Path) -> int:
    return int((folder / "data" / "pgdata" / "postmaster.pid").read_text().split()[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_goes_on_after_a_restart_and_repeats_nothing_that_was_done(folder: Path, number: signal.Signals) -> None:
    with durable(folder, "--drain", "3") as server:
        handler = begin(server)
        assert "runs are kept" in server.printed
        until((folder / "second").exists)
        postgres = postgres_of(folder)
        assert server.end(number) == (0 if number == signal.SIGTERM else -number)
        until(lambda: not Path(f"/proc/{postgres}").exists())
    (folder / "go").touch()
    with durable(folder) as server:
        assert result(server, handler) == "done"
        assert server.end(signal.SIGTERM) == 0
        assert "lost" not in server.printed
    assert (folder / "first").read_text() == "x"
    assert (folder / "second").read_text() == "xx"


def test_a_postgresql_that_was_killed_is_started_again(folder: Path) -> None:
    with durable(folder) as server:
        handler = begin(server)
        until((folder / "second").exists)
        before = postgres_of(folder)
        os.kill(before, signal.SIGKILL)
        server.says("PostgreSQL has ended by itself, and is started again")
        (folder / "go").touch()
        assert result(server, handler) == "done"
        assert postgres_of(folder) != before
        assert server.end(signal.SIGTERM) == 0


def test_a_folder_in_use_is_one_line(folder: Path) -> None:
    with durable(folder) as server:
        assert server.url
        answer = ended([*RUNNER, "flow.py", "--port", "0", "--data-dir", "data"], folder)
        assert answer.returncode == 1
        assert answer.stderr == f"stepway: The database in {folder / 'data'} is in use: Stepway is already running.\n"
        assert "Traceback" not in answer.stderr
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200

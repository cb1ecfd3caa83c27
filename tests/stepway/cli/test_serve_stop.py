"""How `stepway serve` ends: runs are let to end, whatever else happens it ends in time, and the next signal ends it at once."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.stepway.cli.serve_process import RUNNER, Program, program, until

FLOWS = """
import asyncio, time
from pathlib import Path
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent, InputRequiredEvent, HumanResponseEvent

def begun(ev):
    Path(ev.mark).touch()

class Sleeps(Workflow):
    @step
    async def sleep(self, ev: StartEvent) -> StopEvent:
        begun(ev)
        while not Path(ev.mark + ".go").exists():
            await asyncio.sleep(0.02)
        return StopEvent(result="slept")

class Blocks(Workflow):
    @step
    async def block_the_loop(self, ev: StartEvent) -> StopEvent:
        begun(ev)
        time.sleep(600)
        return StopEvent()

class Threads(Workflow):
    @step
    def block_a_thread(self, ev: StartEvent) -> StopEvent:
        begun(ev)
        time.sleep(600)
        return StopEvent()

class Stubborn(Workflow):
    @step
    async def go_on(self, ev: StartEvent) -> StopEvent:
        begun(ev)
        while True:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                pass

sleeps, blocks, threads, stubborn = Sleeps(timeout=None), Blocks(), Threads(), Stubborn()
"""
DRAIN = 3.0
MARGIN = 15.0  # seconds that a busy machine may add
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Program]:
    (tmp_path / "flows.py").write_text(FLOWS)
    with program([*RUNNER, "flows.py", "--port", "0", "--drain", f"{DRAIN:g}"], tmp_path) as started:
        yield started


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def begin(server: Program, name: str, mark: Path) -> str:
    """Start a run, and wait until its step runs. The handler's id."""
    answer = httpx.post(
        f"{server.url}/workflows/{name}/run-nowait", json={"start_event": {"mark": str(mark)}}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    until(mark.exists)
    handler_id: str = answer.json()["handler_id"]
    return handler_id


@SIGNALS
def test_a_run_that_ends_in_time_is_answered(
    server: Program, tmp_path: Path, elsewhere: ThreadPoolExecutor, number: signal.Signals
) -> None:
    mark = tmp_path / "mark"
    url = server.url
    answered = elsewhere.submit(
        lambda: httpx.post(f"{url}/workflows/sleeps/run", json={"start_event": {"mark": str(mark)}}, timeout=60)
    )
    until(mark.exists)
    server.process.send_signal(number)
    until(lambda: not _listens(url))
    Path(f"{mark}.go").touch()
    assert answered.result(60).json()["result"]["value"] == {"result": "slept"}
    assert server.process.wait(60) == 0
    assert "lost" not in server.printed


def _listens(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_open_streams_do_not_hold_it(server: Program, tmp_path: Path, elsewhere: ThreadPoolExecutor) -> None:
    handler = begin(server, "sleeps", tmp_path / "mark")
    url = f"{server.url}/events/{handler}"

    reading: list[int] = []

    def read() -> str:
        """To the end; how it ended."""
        try:
            with httpx.stream("GET", url, timeout=60) as stream:
                reading.append(stream.status_code)
                for _ in stream.iter_raw():
                    pass
        except httpx.RemoteProtocolError:
            return "broken off"
        return "ended"

    readers = [elsewhere.submit(read) for _ in range(3)]
    until(lambda: reading == [200, 200, 200])
    began = time.monotonic()
    assert server.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < DRAIN + MARGIN
    assert "1 runs had not ended, and are lost" in server.printed
    assert [reader.result(60) for reader in readers] == ["broken off"] * 3


def test_a_connection_that_sends_half_a_request_does_not_hold_it(server: Program) -> None:
    import socket

    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as one:
        one.sendall(b"POST /workflows/sleeps/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        began = time.monotonic()
        assert server.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < DRAIN + MARGIN


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("blocks", "a step has blocked the event loop for 3 s (flows.py:22, block_the_loop)"),
        ("threads", "a step has not let itself be stopped for 3 s (flows.py:29, block_a_thread)"),
        ("stubborn", "a step has not let itself be stopped for 3 s"),
    ],
)
@SIGNALS
def test_a_stuck_step_is_ended_by_force_and_named(
    server: Program, tmp_path: Path, name: str, told: str, number: signal.Signals
) -> None:
    mark = tmp_path / "mark"
    url = server.url
    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(1) as pool:
        pool.submit(client.post, f"{url}/workflows/{name}/run-nowait", json={"start_event": {"mark": str(mark)}})
        until(mark.exists)
        began = time.monotonic()
        assert server.end(number) == 1
        assert time.monotonic() - began < DRAIN + MARGIN
    assert told in server.printed
    assert "Traceback" not in server.printed


@pytest.mark.parametrize("name", ["sleeps", "blocks"])
def test_the_second_signal_ends_it_at_once(server: Program, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    url = server.url
    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(1) as pool:
        pool.submit(client.post, f"{url}/workflows/{name}/run-nowait", json={"start_event": {"mark": str(mark)}})
        until(mark.exists)
        server.process.send_signal(signal.SIGTERM)
        if name == "sleeps":
            until(lambda: not _listens(url))
        time.sleep(0.2)  # the same signal twice at once is one
        assert server.end(signal.SIGINT) == 130
    assert "told twice to stop" in server.printed
    assert "by force" not in server.printed


def test_a_program_that_serves_by_itself_ends_in_time_too(tmp_path: Path) -> None:
    """Its steps in threads would be waited for by asyncio without end."""
    text = f"""{FLOWS}
from stepway.runner import Config, WorkflowServer
server = WorkflowServer(Config(port=0, drain={DRAIN}))
server.add_workflow("threads", threads)
if __name__ == "__main__":
    asyncio.run(server.serve())
    print("after", flush=True)
"""
    (tmp_path / "own.py").write_text(text)
    with program(["own.py"], tmp_path) as server:
        begin(server, "threads", tmp_path / "mark")
        began = time.monotonic()
        assert server.end(signal.SIGTERM) == 1
        assert time.monotonic() - began < DRAIN + MARGIN
        assert "a step has not let itself be stopped" in server.printed
    with program(["own.py"], tmp_path) as server:
        assert server.url
        assert server.end(signal.SIGINT) == 0
        assert server.printed.endswith("after\n")


def test_a_start_that_hangs_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(600)\n")
    with program([*RUNNER, "slow.py"], tmp_path) as server:
        server.says("loading")
        assert server.end(signal.SIGINT) == 130
        assert "Traceback" not in server.printed

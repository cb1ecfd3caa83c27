"""Runs that have left memory while they wait: what wakes them, what ends them, and what they cost."""

import time
from pathlib import Path

import httpx

from tests.stepway.runner.faults.conftest import ANSWER, Errands, answer, begin, ended, numbers, result
from tests.stepway.runner.serving import Server, until

SOON = ("--idle-release", "0.3s")
MIB = 1 << 20


def test_an_event_that_is_sent_to_another_server_wakes_it(errands: Errands) -> None:
    with errands.server(*SOON) as first, errands.server(*SOON) as second:
        for n in range(4):
            begin(first, "waits", f"h{n}")
        until(lambda: all(errands.released(f"h{n}") for n in range(4)))
        for n in range(4):
            assert answer([second, first][n % 2], f"h{n}").status_code == 200
        for n in range(4):
            assert result([first, second][n % 2], f"h{n}") == "yes"
            seen = numbers(first, f"h{n}")
            assert seen == list(range(len(seen)))
            assert len(errands.notes(f"h{n}:answered")) == 1


def test_a_wait_ends_in_time(errands: Errands) -> None:
    """Also when the server dies that knew of it, and when the run has been in memory once more in between."""
    with errands.server(*SOON) as first:
        began = begin(first, "waits", "stays", seconds=3)
        begin(first, "waits", "killed", seconds=8)
        until(lambda: errands.released("stays") and errands.released("killed"))
        assert result(first, "stays") == "gave up"
        assert errands.released("killed")
        assert errands.notes("stays:gave-up")[0][1] - began >= 3
        first.kill()
    with errands.server(*SOON) as second:
        assert ended(second, "killed")["result"]["value"]["result"] == "gave up"
    assert errands.notes("killed:gave-up")[0][1] - began >= 8


def test_a_workflow_times_out(errands: Errands) -> None:
    with errands.server(*SOON, TIMEOUT="4") as server, errands.server(*SOON, TIMEOUT="4"):
        began = begin(server, "hurries", "late")
        begin(server, "hurries", "quick")
        until(lambda: errands.released("late") and errands.released("quick"))
        answer(server, "quick")
        assert result(server, "quick") == "yes"
        handler = ended(server, "late")
        assert time.monotonic() - began >= 4
        assert (handler["status"], handler["error"]) == ("failed", "Workflow timed out after 4.0s")


def test_the_bound_of_the_server_holds(errands: Errands) -> None:
    with errands.server(*SOON, "--max-run-time", "4s") as server:
        begin(server, "waits", "late")
        until(lambda: errands.released("late"))
        assert "longer than this server allows" in ended(server, "late")["error"]


def test_a_step_is_tried_again_in_time(errands: Errands) -> None:
    with errands.server(*SOON, RETRY_DELAY="3") as first:
        for name in ("stays", "killed"):
            begin(first, "tries", name)
            until(lambda name=name: errands.released(name))
        first.kill()
        with errands.server(*SOON, RETRY_DELAY="3") as second:
            for name in ("stays", "killed"):
                assert result(second, name) == "got through"
                tries = [at for _, at in errands.notes(f"{name}:try")]
                assert len(tries) == 2
                assert tries[1] - tries[0] >= 3


def resident(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def test_1000_waiting_runs_cost_nearly_no_memory(errands: Errands) -> None:
    with errands.server(*SOON) as server, httpx.Client(base_url=server.url, timeout=60) as http:

        def wait(first: int, last: int) -> None:
            for n in range(first, last):
                assert http.post("/workflows/waits/run-nowait", json={"handler_id": f"h{n}"}).status_code == 200
            until(
                lambda: errands.query(
                    "SELECT count(*) = %s FROM stepway_runner.handler WHERE server_id IS NULL AND released_at IS NOT NULL",
                    last,
                )
            )  # fmt: skip

        wait(0, 600)  # what is kept of the newest 512, say, is kept now
        before = resident(server)
        wait(600, 1600)
        assert resident(server) - before < 8 * MIB
        for n in (0, 800, 1599):
            assert http.post(f"/events/h{n}", json=ANSWER).status_code == 200
            assert result(server, f"h{n}") == "yes"

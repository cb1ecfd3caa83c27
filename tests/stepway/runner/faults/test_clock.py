"""The wall clock is set by an hour in the middle of runs, or was wrong from the beginning: what is due is due in time."""

import os
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.stepway.runner.faults.conftest import Errands, answer, begin, ended, numbers, result
from tests.stepway.runner.serving import REPOSITORY, Server, until

CLOCK = Path(__file__).with_name("clock")
HOUR = 3600.0


class Clock:
    """Of one server; `set` moves it."""

    def __init__(self, errands: Errands, name: str, off: float = 0.0) -> None:
        self._errands = errands
        self._file = errands.folder / f"{name}.clock"
        self.set(off)

    def set(self, off: float) -> None:
        """So many seconds from the right time."""
        new = self._file.with_suffix(".new")
        new.write_text(str(off))
        new.replace(self._file)

    def server(self, *flags: str, **environment: str) -> AbstractContextManager[Server]:
        path = os.pathsep.join([str(CLOCK), str(REPOSITORY)])
        return self._errands.server(*flags, PYTHONPATH=path, CLOCK_OFF=str(self._file), **environment)


def begin_all(server: Server) -> dict[str, float]:
    """Runs of which some are due in seconds and some not for minutes; when each began."""
    began = {name: begin(server, name, name) for name in ("tries", "hurries")}
    began["gives up"] = begin(server, "waits", "gives up", seconds=4)
    began["waits"] = begin(server, "waits", "waits", seconds=600)
    began["works"] = begin(server, "works", "works", seconds=6)
    return began


def all_goes_well(errands: Errands, server: Server, began: dict[str, float]) -> None:
    """To the end of the runs of `begin_all`, none of which may end early, nor wait for an hour."""
    assert result(server, "gives up") == "gave up"
    assert errands.notes("gives up:gave-up")[0][1] - began["gives up"] >= 4
    handler = ended(server, "hurries")
    assert time.monotonic() - began["hurries"] >= 4
    assert (handler["status"], handler["error"]) == ("failed", "Workflow timed out after 4.0s")
    assert result(server, "tries") == "got through"
    tries = [at for _, at in errands.notes("tries:try")]
    assert len(tries) == 2
    assert tries[1] - tries[0] >= 3
    assert result(server, "works") == "worked"
    assert server.ask("GET", "/handlers/waits").json()["status"] == "running"
    assert answer(server, "waits").status_code == 200
    assert result(server, "waits") == "yes"
    for name in began:
        seen = numbers(server, name)
        assert seen == list(range(len(seen)))


@pytest.mark.faults(sample=2)
@pytest.mark.parametrize("off", [HOUR, -HOUR])
def test_a_clock_that_is_set_while_runs_wait(anywhere: Errands, off: float) -> None:
    clock = Clock(anywhere, "one")
    with clock.server("--max-run-time", "120s", RETRY_DELAY="3", TIMEOUT="4") as server:
        began = begin_all(server)
        until(lambda: anywhere.notes("works:begin"))
        clock.set(off)
        began["later"] = begin(server, "tries", "later")
        all_goes_well(anywhere, server, began)
        assert result(server, "later") == "got through"
        tries = [at for _, at in anywhere.notes("later:try")]
        assert tries[1] - tries[0] >= 3
    assert len(anywhere.notes("works:begin")) == 1


@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("off", [HOUR, -HOUR])
def test_no_lease_moves_when_one_of_two_servers_has_its_clock_set(errands: Errands, off: float) -> None:
    clock, other = Clock(errands, "one"), Clock(errands, "other", -off)
    flags = ("--idle-release", "0.3s", "--max-run-time", "120s")
    with clock.server(*flags) as first, other.server(*flags) as second:
        begin(first, "works", "first", seconds=12)
        begin(second, "works", "second", seconds=12)
        owner = "SELECT server_id FROM stepway_runner.handler WHERE handler_id = %s AND status = 'running'"
        owners = [errands.query(owner, name) for name in ("first", "second")]
        assert len(set(owners)) == 2
        clock.set(off)
        other.set(off * 2)
        began = begin_all(first)
        until(lambda: errands.released("waits"))
        all_goes_well(errands, second, began)
        assert [result(second, name) for name in ("first", "second")] == ["worked", "worked"]
    assert len(errands.notes("first:begin")) == len(errands.notes("second:begin")) == 1


@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("off", [HOUR, -HOUR])
def test_a_server_whose_clock_is_wrong_takes_over(errands: Errands, off: float) -> None:
    flags = ("--max-run-time", "120s")
    with errands.server(*flags) as first:
        began = begin_all(first)
        until(lambda: errands.notes("works:begin"))
        until(lambda: errands.notes("tries:failed"))
        until(lambda: errands.query("SELECT count(DISTINCT run_id) = 5 FROM stepway_runner.journal"))
        first.kill()
    with Clock(errands, "one", off).server(*flags) as second:
        all_goes_well(errands, second, began)

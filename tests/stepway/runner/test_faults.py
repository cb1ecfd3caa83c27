"""What a killed, a frozen and a stopping server leave: nothing that had ended runs again, nothing is lost."""

import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import postgres
from tests.stepway.runner.serving import Server, serving, until

FILE = Path(__file__).with_name("journey.py")
POINTS = [
    "split:begin", "split:end", "square0:begin", "square1:end", "square3:begin", "square3:end",
    "add:begin", "add:end", "try:begin", "try:end", "ask:begin", "ask:end",
]  # fmt: skip
RESULT = {"total": 14, "answer": "yes", "visits": ["split", "add"]}


class Journey:
    """One folder with the file, its log of points, and servers on one store."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._folder = folder
        self._flags = flags
        self._points = folder / "points"
        self._points.touch()
        self._file = folder / "journey.py"
        shutil.copy(FILE, self._file)

    def server(self, kill_at: str = "", **given: Any) -> AbstractContextManager[Server]:
        environment = {"LOG": str(self._points), "KILL_AT": kill_at}
        return serving(self._file, *self._flags, log=self._folder / "server.log", environment=environment, **given)

    def reached(self) -> Counter[str]:
        return Counter(self._points.read_text().split())


@pytest.fixture(params=["postgres", "embedded"])
def journey(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journey]:
    if request.param == "embedded":
        yield Journey(tmp_path, "--data-dir", str(tmp_path / "data"))
        return
    with _database() as url:
        yield Journey(tmp_path, "--database", url)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Journey]:
    """Of several servers on one database."""
    with _database() as url:
        yield Journey(tmp_path, "--database", url)


class _database:
    def __enter__(self) -> str:
        server = postgres.server()
        server.make_template("empty_for_runs", lambda url: None)
        self._url = server.clone("empty_for_runs")
        return self._url

    def __exit__(self, *_: object) -> None:
        postgres.server().drop(self._url)


def begin(server: Server, handler_id: str = "one") -> None:
    body = {"start_event": {"count": 4}, "handler_id": handler_id}
    answer = server.ask("POST", "/workflows/journey/run-nowait", json=body)
    assert answer.status_code == 200, answer.text


def asked(server: Server, handler_id: str = "one") -> bool:
    """Follow the run until it asks for an answer; False when the server died before."""
    try:
        with httpx.stream("GET", f"{server.url}/events/{handler_id}?after_sequence=-1", timeout=60) as stream:
            return any('"InputRequiredEvent"' in line for line in stream.iter_lines())
    except httpx.HTTPError:
        return False


def answer(server: Server, handler_id: str = "one") -> bool:
    """Whether the server said that it has the answer."""
    event = {"type": "HumanResponseEvent", "value": {"_data": {"response": "yes"}}}
    try:
        got = server.ask("POST", f"/events/{handler_id}", json={"event": event})
    except httpx.HTTPError:
        return False
    assert got.status_code == 200, got.text
    return True


def ended(server: Server, handler_id: str = "one") -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        answer = server.ask("GET", f"/handlers/{handler_id}")
        assert answer.status_code in (200, 202, 500), answer.text
        got: dict[str, Any] = answer.json()
        return got if got["status"] != "running" else None

    handler: dict[str, Any] = until(over)
    assert handler["status"] == "completed", handler
    assert handler["result"]["value"]["result"] == RESULT
    return handler


def stream(server: Server, handler_id: str = "one") -> list[tuple[int, dict[str, Any]]]:
    """The whole stream of a run that has ended."""
    text = server.ask("GET", f"/events/{handler_id}?after_sequence=-1&include_internal=true").text
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("id:")]
    return [(int(lines[0][3:]), json.loads(lines[1][5:])) for lines in blocks]


@pytest.mark.faults(sample=3)
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_loses_no_step(journey: Journey, point: str) -> None:
    sent = False
    with journey.server(kill_at=point) as server:
        begin(server)
        if asked(server):
            sent = answer(server)
        assert server.died() == -signal.SIGKILL
    before = journey.reached()
    with journey.server() as server:
        if not sent:
            assert asked(server)
            assert answer(server)
        ended(server)
        events = stream(server)
    reached = journey.reached()
    for one in POINTS:
        name, place = one.split(":")
        again = 1 if one == point or (place == "begin" and f"{name}:end" == point) else 0
        if name in ("try", "ask"):
            continue  # counted below: these begin more than once by themselves
        running = before[f"{name}:begin"] > before[f"{name}:end"]  # beside the one that was killed
        assert reached[one] <= 1 + (again or (running and place == "begin")), (one, reached)
    assert reached["try:end"] == 1 + (point == "try:end")
    assert reached["ask:end"] == 1 + (point == "ask:end")
    assert [seq for seq, _ in events] == list(range(len(events)))
    assert [one["type"] for _, one in events].count("StopEvent") == 1


def test_a_run_is_taken_over_from_a_server_that_died(shared: Journey) -> None:
    with shared.server() as first, shared.server() as second:
        begin(first)
        assert asked(second)
        first.kill()
        assert answer(second)
        ended(second)


def test_a_frozen_server_loses_its_runs_and_comes_back(shared: Journey) -> None:
    with shared.server() as first:
        for n in range(3):
            begin(first, f"h{n}")
        first.signal(signal.SIGSTOP)
        try:
            with shared.server() as second:
                for n in range(3):
                    assert asked(second, f"h{n}")
                    assert answer(second, f"h{n}")
                    ended(second, f"h{n}")
                first.signal(signal.SIGCONT)
                first.ready()
                for n in range(3):
                    ended(first, f"h{n}")
                    events = stream(first, f"h{n}")
                    assert [seq for seq, _ in events] == list(range(len(events)))
                begin(first, "later")
                assert asked(second, "later")
                assert answer(second, "later")
                ended(first, "later")
        finally:
            first.signal(signal.SIGCONT)


def test_both_servers_take_work_and_readers_on_either_see_it(shared: Journey) -> None:
    with shared.server() as first, shared.server() as second:
        for n in range(10):
            begin([first, second][n % 2], f"h{n}")
        for n in range(10):
            other = [second, first][n % 2]
            assert asked(other, f"h{n}")
            assert answer(other, f"h{n}")
        for n in range(10):
            ended([second, first][n % 2], f"h{n}")
            assert stream(first, f"h{n}") == stream(second, f"h{n}")
    reached = shared.reached()
    assert reached["split:end"] == reached["add:end"] == reached["ask:end"] == 10


def test_a_stopping_server_hands_its_runs_over(shared: Journey) -> None:
    with shared.server() as first, shared.server() as second:
        begin(first)
        with httpx.stream("GET", f"{first.url}/events/one?after_sequence=-1", timeout=60) as open_stream:
            first.signal(signal.SIGTERM)
            assert first.died(timeout=10) == 0
            with pytest.raises(httpx.HTTPError):
                for _ in open_stream.iter_lines():
                    pass
        assert asked(second)
        assert answer(second)
        ended(second)
        assert max(shared.reached()[f"{name}:end"] for name in ("split", "square0", "square3", "add")) == 1

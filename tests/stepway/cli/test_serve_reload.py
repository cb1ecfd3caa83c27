"""`--reload`: a changed file is served by the next process, a broken one is not, and nothing is left behind."""

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests.stepway.cli.serve_process import RUNNER, Program, program, until

FLOW = """
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent
from words import WORD

class Says(Workflow):
    @step
    async def say(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=WORD)

says = Says()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "flow.py").write_text(FLOW)
    word(tmp_path, "one")
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Program]:
    with reloading(folder) as started:
        yield started


def reloading(folder: Path, *flags: str) -> AbstractContextManager[Program]:
    return program([*RUNNER, "flow.py", "--port", "0", "--reload", *flags], folder)


def word(folder: Path, text: str) -> None:
    (folder / "words.py").write_text(f"WORD = {text!r}\n")


def said(server: Program) -> str:
    result: str = server.run("says").json()["result"]["value"]["result"]
    return result


def children(server: Program) -> list[int]:
    return [
        int(one) for one in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    ]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_change_is_served_at_the_same_address_without_a_gap(server: Program, folder: Path) -> None:
    url = server.url
    assert said(server) == "one"
    assert "runs live in memory: those that run are lost when a file changes" in server.printed
    word(folder, "two")
    # every request is answered while one process follows the other
    until(
        lambda: (
            httpx.post(f"{url}/workflows/says/run", json={}, timeout=60).json()["result"]["value"]["result"] == "two"
        )
    )
    assert "words.py changed: flow.py is loaded again" in server.printed
    (folder / "flow.py").write_text(FLOW.replace("result=WORD", "result=WORD * 2"))
    until(lambda: said(server) == "twotwo")
    assert server.end(signal.SIGTERM) == 0


def test_a_new_file_and_one_in_a_package_count_and_others_do_not(server: Program, folder: Path) -> None:
    assert said(server) == "one"
    for name in (".hidden", "node_modules", "venv"):
        (folder / name).mkdir()
    (folder / "venv" / "pyvenv.cfg").write_text("")
    for place in (".hidden/a.py", "node_modules/a.py", "venv/a.py", "notes.txt"):
        (folder / place).write_text("x = 1\n")
    (folder / "package").mkdir()
    (folder / "package" / "deep.py").write_text("x = 1\n")
    server.says("deep.py changed")
    assert server.printed.count("changed:") == 1


def test_a_broken_file_leaves_the_old_one_served_until_it_is_mended(server: Program, folder: Path) -> None:
    assert said(server) == "one"
    word(folder, "two")
    (folder / "flow.py").write_text(FLOW.replace("says = Says()", "says = Says("))
    server.says("it is served as it was before")
    assert "SyntaxError" in server.printed
    assert said(server) == "one"
    (folder / "flow.py").write_text(FLOW)
    until(lambda: said(server) == "two")


def test_a_file_that_is_broken_from_the_start_is_served_once_it_is_mended(folder: Path) -> None:
    (folder / "flow.py").write_text("1 / 0\n")
    with reloading(folder) as server:
        server.says("nothing is served until a file changes")
        assert "ZeroDivisionError" in server.printed
        (folder / "flow.py").write_text(FLOW)
        assert said(server) == "one"


def test_a_server_that_ends_by_itself_is_told_and_started_by_a_change(server: Program, folder: Path) -> None:
    assert said(server) == "one"
    (child,) = children(server)
    os.kill(child, signal.SIGKILL)
    server.says("the server has ended by itself")
    word(folder, "two")
    until(lambda: server.printed.count("serving says at") == 2)
    assert said(server) == "two"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent(server: Program, number: signal.Signals) -> None:
    assert said(server) == "one"
    (child,) = children(server)
    assert server.end(number) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    until(lambda: not lives(child))
    assert "told twice" not in server.printed


def test_the_new_process_tells_nobody_its_secrets(folder: Path) -> None:
    flags = ["--platform", "http://127.0.0.1:9", "--key", "sk-hunter2"]

    def commands(program: Program) -> list[bytes]:
        return [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(program)]

    with reloading(folder, *flags) as server:
        until(lambda: [one for one in commands(server) if b"--reload" not in one])  # before it is a copy of its parent
        assert not [one for one in commands(server) if b"hunter2" in one]


PATIENT = """
from pathlib import Path
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StopEvent
from stepway.runner import WorkflowServer
from words import WORD

class First(Event):
    word: str

class Asks(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> First:
        with Path("begun").open("a") as log:
            log.write("x")
        return First(word=WORD)
    @step
    async def ask(self, ctx: Context, ev: First) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent)
        return StopEvent(result=[ev.word, WORD, answer.response])

server = WorkflowServer()
server.add_workflow("says", Asks(timeout=None), additional_events=[HumanResponseEvent])
"""


def test_runs_of_a_durable_store_go_on_in_the_next_version(folder: Path) -> None:
    (folder / "flow.py").write_text(PATIENT)
    with reloading(folder, "--data-dir", str(folder / "data")) as server:
        url = server.url
        assert "are lost" not in server.printed
        handler = httpx.post(f"{url}/workflows/says/run-nowait", json={}, timeout=60).json()["handler_id"]
        until((folder / "begun").exists)
        before = children(server)
        word(folder, "two")
        server.says("serving says at", times=2)
        until(lambda: not all(map(lives, before)))  # the old version has gone, the PostgreSQL stays

        def told() -> bool:
            event = {"type": "HumanResponseEvent", "value": {"response": "yes"}}
            return httpx.post(f"{url}/events/{handler}", json={"event": event}, timeout=60).status_code == 200

        until(told)
        until(lambda: httpx.get(f"{url}/handlers/{handler}", timeout=60).status_code == 200)
        result = httpx.get(f"{url}/results/{handler}", timeout=60).json()["result"]
        assert result == ["one", "two", "yes"]  # what was done is kept, what follows is the new version's
        assert (folder / "begun").read_text() == "x"
        postgres = int((folder / "data" / "pgdata" / "postmaster.pid").read_text().split()[0])
        assert server.end(signal.SIGTERM) == 0
        assert not lives(postgres)

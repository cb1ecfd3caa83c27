"""`stepway serve` as a person starts it: the tutorial's file, addresses, what is refused, and folders of the user's."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.stepway.cli.serve_process import REPOSITORY, RUNNER, SERVE, ended, program

# The public tutorial's file, with its one import changed, and its last part uncommented.
TUTORIAL = """# my_server.py
import asyncio

from workflows import Workflow, step
from workflows.context import Context
from workflows.events import Event, StartEvent, StopEvent
from stepway.runner import WorkflowServer


class StreamEvent(Event):
    sequence: int


# Define a simple workflow
class GreetingWorkflow(Workflow):
    @step
    async def greet(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for i in range(3):
            ctx.write_event_to_stream(StreamEvent(sequence=i))
            await asyncio.sleep(0.3)

        name = getattr(ev, "name", "World")
        return StopEvent(result=f"Hello, {name}!")
greet_wf = GreetingWorkflow()


# Create a server instance
server = WorkflowServer()

# Add the workflow to the server
server.add_workflow("greet", greet_wf)

async def main():
    await server.serve(host="0.0.0.0", port=PORT)

if __name__ == "__main__":
    asyncio.run(main())
"""
FLOW = """
from pydantic import Field
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

class Ask(StartEvent):
    topic: str
    words: int | None = None
    tags: list[str] = Field(default_factory=list)

class Joke(Workflow):
    @step
    async def write(self, ev: Ask) -> StopEvent:
        return StopEvent(result=ev.topic)

joke = Joke()
"""


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    (tmp_path / "flow.py").write_text(FLOW)
    return tmp_path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


# ---- the tutorial


@pytest.mark.parametrize("start", [SERVE, RUNNER], ids=["stepway serve", "python -m stepway.runner"])
def test_the_tutorials_file_is_served(tmp_path: Path, start: tuple[str, ...]) -> None:
    (tmp_path / "my_server.py").write_text(TUTORIAL)
    with program([*start, "my_server.py", "--port", "0"], tmp_path) as server:
        answer = server.run("greet", name="Ada")
        assert (answer.status_code, answer.json()["result"]["value"]) == (200, {"result": "Hello, Ada!"})
        assert server.url.startswith("http://127.0.0.1:")
        assert "serving greet at" in server.printed
        assert "runs live in memory" in server.printed
        assert server.end(signal.SIGINT) == 0
        assert "Traceback" not in server.printed


def test_the_tutorials_file_serves_by_itself(tmp_path: Path) -> None:
    """It says 0.0.0.0; without keys only this machine is answered there."""
    (tmp_path / "my_server.py").write_text(TUTORIAL.replace("PORT", "0"))
    with program(["my_server.py"], tmp_path) as server:
        assert server.run("greet").json()["result"]["value"] == {"result": "Hello, World!"}
        assert "without keys only programs of this machine are answered" in server.printed
        address = _other_address()
        if address is not None:
            port = server.url.rpartition(":")[2]
            answer = httpx.get(f"http://{address}:{port}/workflows")
            assert answer.status_code == 403
            assert "--insecure" in answer.json()["detail"]
        assert server.end(signal.SIGTERM) == 0
        assert "Traceback" not in server.printed


def _other_address() -> str | None:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        address: str = one.getsockname()[0]
        return None if address.startswith("127.") else address


# ---- where it listens


def test_host_and_port_of_the_environment_are_honoured_and_flags_beat_them(flow: Path) -> None:
    port = free_port()
    given = {"WORKFLOWS_PY_SERVER_PORT": str(port), "WORKFLOWS_PY_SERVER_HOST": "localhost"}
    with program([*RUNNER, "flow.py"], flow, **given) as server:
        assert server.url.endswith(f":{port}")
        assert server.run("joke", topic="tea").json()["result"]["value"] == {"result": "tea"}
        with program([*RUNNER, "flow.py", "--port", "0"], flow, **given) as other:
            assert not other.url.endswith(f":{port}")
            assert other.run("joke", topic="tea").status_code == 200


@pytest.mark.parametrize("where", ["flag", "environment"])
def test_without_keys_only_this_machine_is_served(flow: Path, where: str) -> None:
    flags = ["--host", "0.0.0.0"] if where == "flag" else []
    given = {} if where == "flag" else {"WORKFLOWS_PY_SERVER_HOST": "0.0.0.0"}
    answer = ended([*RUNNER, "flow.py", "--port", "0", *flags], flow, **given)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "--platform URL --key KEY" in answer.stderr
    assert "--insecure" in answer.stderr


def test_a_trusted_network_is_served_when_it_is_said(flow: Path) -> None:
    with program([*RUNNER, "flow.py", "--port", "0", "--host", "0.0.0.0", "--insecure"], flow) as server:
        address = _other_address() or "127.0.0.1"
        port = server.url.rpartition(":")[2]
        assert httpx.get(f"http://{address}:{port}/workflows").json() == {"workflows": ["joke"]}


# ---- what is refused


@pytest.mark.parametrize("start", [SERVE, RUNNER], ids=["stepway serve", "python -m stepway.runner"])
def test_a_port_in_use_is_one_line(flow: Path, start: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = ended([*start, "flow.py", "--port", str(port)], flow)
    assert answer.returncode == 1
    assert answer.stderr == (
        f"stepway: Cannot listen on 127.0.0.1:{port}: another program listens there; choose another --port.\n"
    )


def test_a_bad_value_is_one_line(flow: Path) -> None:
    answer = ended([*SERVE, "flow.py", "--port", "many"], flow)
    assert (answer.returncode, answer.stderr) == (2, "stepway: --port takes a whole number from 0 to 65535.\n")
    answer = ended([*RUNNER, "flow.py"], flow, STEPWAY_RUNNER_DRAIN="soon")
    assert answer.returncode == 2
    assert answer.stderr.startswith("stepway: STEPWAY_RUNNER_DRAIN takes a span of time")


@pytest.mark.parametrize(
    "given", [{"STEPWAY_RUNNER_DRAIN": "soon"}, {"STEPWAY_RUNNER_DATABASE": "postgresql://me:hunter2@[/"}]
)
def test_a_bad_value_is_not_told_as_an_error_of_the_file(tmp_path: Path, given: dict[str, str]) -> None:
    (tmp_path / "my_server.py").write_text(TUTORIAL)
    answer = ended([*RUNNER, "my_server.py"], tmp_path, **given)
    assert answer.returncode in (1, 2)
    assert answer.stderr.startswith("stepway: ")
    assert answer.stderr.count("\n") == 1
    assert "hunter2" not in answer.stderr


def test_a_database_that_is_away_is_one_line_without_its_password(flow: Path) -> None:
    url = f"postgresql://me:hunter2@127.0.0.1:{free_port()}/runs"
    answer = ended([*RUNNER, "flow.py", "--port", "0"], flow, STEPWAY_RUNNER_DATABASE=url)
    assert answer.returncode == 1
    assert answer.stderr.startswith("stepway: ")
    assert "Traceback" not in answer.stderr
    assert "hunter2" not in answer.stderr


def test_a_host_that_is_none_is_one_line(flow: Path) -> None:
    answer = ended([*RUNNER, "flow.py", "--host", "no.such.host.invalid"], flow)
    assert answer.returncode == 1
    assert answer.stderr.startswith("stepway: Cannot listen on no.such.host.invalid: ")
    assert answer.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    answer = ended([*RUNNER, "nothing.py"], tmp_path)
    assert (answer.returncode, answer.stderr) == (2, "stepway: There is no file nothing.py.\n")


def test_an_error_of_the_file_is_its_own_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import json\n\njson.loads('{')\n")
    answer = ended([*SERVE, "bad.py"], tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f'Traceback (most recent call last):\n  File "{tmp_path}/bad.py", line 3')
    assert "stepway" not in answer.stderr


# ---- check


def test_check_says_what_would_be_served(flow: Path) -> None:
    answer = ended([*SERVE, "flow.py", "--check"], flow)
    assert answer.returncode == 0
    assert answer.stdout.splitlines() == [
        "joke: Joke",
        "  start  Ask: topic (string), words (integer or null, optional), tags (array, optional)",
        "  steps  write",
        "  stop   StopEvent",
    ]
    (flow / "flow.py").write_text(FLOW.replace("joke = Joke()", "raise RuntimeError('no')"))
    assert ended([*SERVE, "flow.py", "--check"], flow).returncode == 2


# ---- folders of the user's

PROJECT = {
    "flows.py": "from services.words import HELLO\nfrom shared import mark\nfrom shared.deep.end import LAST\n"
    "from workflows import Workflow, step\nfrom workflows.events import StartEvent, StopEvent\n"
    "class Hello(Workflow):\n    @step\n    async def say(self, ev: StartEvent) -> StopEvent:\n"
    "        from migrations import first\n"
    "        return StopEvent(result=HELLO + mark.MARK + LAST + first.FIRST)\n",
    "services/__init__.py": "",
    "services/words.py": "HELLO = 'hello'\n",
    "shared/mark.py": "MARK = '!'\n",  # these two have no __init__.py
    "shared/deep/end.py": "LAST = '.'\n",
    "migrations/first.py": "FIRST = '1'\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name, text in PROJECT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stepway, built as it is published."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("stepway", "services", "shared", "migrations"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source],
        check=True, env={**os.environ, "PYTHONPATH": ""}, timeout=150,
    )  # fmt: skip
    return next(out.glob("*.whl"))


def _installed(folder: Path, *, wheel: Path | None) -> str:
    """A Python in which Stepway is installed from a wheel, or as an editable one, beside the dependencies of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    dependencies = sysconfig.get_path("purelib")
    lines = [dependencies] if wheel else [str(REPOSITORY), dependencies]
    (packages / "these.pth").write_text("\n".join(lines) + "\n")
    if wheel is not None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    return str(folder / "bin" / "python")


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_folders_of_our_names_are_the_users(
    project: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    python = _installed(tmp_path / "venv", wheel=request.getfixturevalue("wheel") if kind == "wheel" else None)
    ours = subprocess.run(
        [python, "-c", "import stepway, services; print(services.__file__)"], capture_output=True, text=True, check=True,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, timeout=60,
    ).stdout  # fmt: skip
    assert str(tmp_path if kind == "wheel" else REPOSITORY) in ours  # it is there, and could be taken instead
    for start in (SERVE, RUNNER):
        with program([*start, "project/flows.py", "--port", "0"], tmp_path, python=python, PYTHONPATH="") as server:
            assert server.run("hello").json()["result"]["value"] == {"result": "hello!.1"}
            assert server.end(signal.SIGTERM) == 0


def test_nothing_of_the_control_plane_is_loaded(flow: Path) -> None:
    """Neither by the command nor by the server: it would take the place of the user's own."""
    (flow / "flow.py").write_text(
        f"{FLOW}\nimport sys\nprint(sorted(name for name in sys.modules if name.split('.')[0] in "
        "('services', 'shared', 'migrations')), flush=True)\n"
    )
    for start in (SERVE, RUNNER):
        assert ended([*start, "flow.py", "--check"], flow).stdout.splitlines()[0] == "[]"

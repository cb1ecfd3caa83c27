"""What is found in a user's file, and what is said of a file that cannot be served."""

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepway.runner import loading
from stepway.runner.loading import Broken, LoadError
from stepway.runner.server import WorkflowServer

HEAD = """
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent
"""
HELLO = f"""{HEAD}
class HelloFlow(Workflow):
    @step
    async def hello(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="hello")
"""
SERVER = "\nfrom stepway.runner import WorkflowServer\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a file of a name that no module has; what loading it changes in this process is undone."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    before = set(sys.modules)

    def write(text: str, name: str | None = None) -> Path:
        path = tmp_path / (name or f"flows_{uuid.uuid4().hex[:8]}.py")
        path.write_text(text)
        return path

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def load(path: Path | str) -> WorkflowServer:
    return loading.load(loading.target(str(path)))


def refused(path: Path | str) -> str:
    with pytest.raises(LoadError) as error:
        load(path)
    return str(error.value)


# ---- what is found


def test_the_server_of_the_file_is_served_whatever_its_name(write: Write) -> None:
    path = write(
        f'{HELLO}{SERVER}other = HelloFlow()\nmine = WorkflowServer()\nmine.add_workflow("hi", other)\nalso = mine\n'
    )
    assert list(load(path).runs.served) == ["hi"]


def test_one_of_several_servers_is_chosen_by_name(write: Write) -> None:
    made = [f'{name} = WorkflowServer()\n{name}.add_workflow("of_{name}", HelloFlow())\n' for name in ("a", "b")]
    text = f"{HELLO}{SERVER}{''.join(made)}"
    path = write(text)
    assert refused(path) == f"{path.name} has 2 servers: a, b. Choose one: {path.name}:a"
    again = write(text)
    assert list(load(f"{again}:b").runs.served) == ["of_b"]


def test_workflows_are_served_by_the_names_of_their_variables(write: Write) -> None:
    path = write(f"{HELLO}greet = HelloFlow()\nsame = greet\n_hidden = HelloFlow()\nother = HelloFlow(timeout=1)\n")
    assert list(load(path).runs.served) == ["greet", "other"]


def test_a_workflow_or_its_class_is_chosen_by_name(write: Write) -> None:
    path = write(f"{HELLO}one = HelloFlow()\ntwo = HelloFlow()\n")
    assert list(load(f"{path}:two").runs.served) == ["two"]
    assert list(load(f"{write(HELLO)}:HelloFlow").runs.served) == ["hello_flow"]


def test_classes_are_served_where_nothing_is_made_of_them(write: Write) -> None:
    text = f"""{HELLO}
class RAGFlow(HelloFlow):
    pass

class Needs(Workflow):
    def __init__(self, model):
        super().__init__()
    @step
    async def hello(self, ev: StartEvent) -> StopEvent:
        return StopEvent()
"""
    assert list(load(write(text)).runs.served) == ["rag_flow"]  # HelloFlow is only its base


def test_the_module_has_the_name_of_the_file_and_can_be_found_by_it(write: Write) -> None:
    path = write(
        f"{HELLO}from pydantic import BaseModel\nimport sys\nargs = sys.argv\ngreet = HelloFlow()\n", "my-own.flow.py"
    )
    server = load(path)
    kind = type(server.runs.served["greet"].workflow)
    assert kind.__module__ == "my-own.flow"
    assert sys.modules["my-own.flow"].HelloFlow is kind
    assert sys.modules["my-own.flow"].args == [str(path)]


def test_modules_beside_the_file_come_before_installed_ones(write: Write, tmp_path: Path) -> None:
    own = f"beside_{uuid.uuid4().hex[:8]}"
    write("NAME = 'beside'\n", f"{own}.py")
    load(write(f"{HELLO}from {own} import NAME\ngreet = HelloFlow(workflow_name=NAME)\n"))
    assert sys.path[0] == str(tmp_path)


def test_what_only_runs_as_a_program_does_not_run(write: Write) -> None:
    path = write(f"{HELLO}greet = HelloFlow()\nif __name__ == '__main__':\n    raise SystemExit('it ran')\n")
    assert list(load(path).runs.served) == ["greet"]


# ---- what is refused


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.py") == f"There is no file {tmp_path / 'no.py'}."
    assert refused(f"{tmp_path / 'no.py'}:server") == f"There is no file {tmp_path / 'no.py'}."
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "flows.txt").write_text("")
    assert "does not end in .py" in refused(tmp_path / "flows.txt")


def test_a_file_of_a_modules_name_is_refused(write: Write) -> None:
    assert refused(write(HELLO, "workflows.py")) == (
        "workflows.py cannot be served under this name: there is another module `workflows`. Rename the file."
    )


def test_a_file_with_nothing_in_it_is_told_what_to_write(write: Write) -> None:
    told = refused(write("x = 1\n"))
    assert "nothing to serve" in told
    assert 'server.add_workflow("greet", GreetingWorkflow())' in told


def test_a_server_with_nothing_in_it_is_told_what_to_write(write: Write) -> None:
    assert 'add app.add_workflow("name", workflow)' in refused(write(f"{SERVER}app = WorkflowServer()\n"))


def test_a_class_that_needs_arguments_is_named(write: Write) -> None:
    text = f"{HELLO}\nclass Needs(HelloFlow):\n    def __init__(self, model):\n        super().__init__()\n"
    assert "`needs = Needs(…)`" in refused(write(text))


def test_a_name_that_the_file_does_not_have_is_told(write: Write) -> None:
    path = write(f"{HELLO}greet = HelloFlow()\nx = 1\n")
    assert refused(f"{path}:nothing") == f"{path.name} has no `nothing`; it has greet."
    assert "neither a WorkflowServer" in refused(f"{path}:x")


def test_a_workflow_that_is_not_well_formed_is_named(write: Write) -> None:
    text = f"""{HEAD}
from workflows.events import Event
class Lost(Event): pass
class Bad(Workflow):
    @step
    async def a(self, ev: StartEvent) -> Lost:
        return Lost()
    @step
    async def b(self, ev: StartEvent) -> StopEvent:
        return StopEvent()
bad = Bad()
"""
    told = refused(write(text))
    assert "bad cannot be served" in told
    assert "Lost" in told


def test_an_error_of_the_file_is_told_from_its_own_first_line(write: Write) -> None:
    path = write("def go():\n    return 1 / 0\n\ngo()\n")
    with pytest.raises(Broken) as broken:
        load(path)
    told = str(broken.value)
    assert told.startswith(f'Traceback (most recent call last):\n  File "{path}", line 4, in <module>')
    assert told.endswith("ZeroDivisionError: division by zero")
    assert "loading.py" not in told
    assert "importlib" not in told


def test_a_syntax_error_is_told_with_its_line(write: Write) -> None:
    path = write("x = 1\ndef (:\n")
    told = refused(path)
    assert f'File "{path}", line 2' in told
    assert "loading.py" not in told


def test_a_file_that_ends_the_program_is_told(write: Write) -> None:
    assert "ended the program" in refused(write("raise SystemExit(3)\n"))


def test_a_file_that_serves_by_itself_is_told_where_that_belongs(write: Write) -> None:
    path = write(
        f"{HELLO}{SERVER}import asyncio\nserver = WorkflowServer()\nserver.add_workflow('hi', HelloFlow())\n"
        "asyncio.run(server.serve('127.0.0.1', 0))\n"
    )
    told = refused(path)
    assert told.startswith(f"{path.name} serves by itself while it is loaded: put that under `if __name__")


def test_a_workflow_that_fails_to_be_made_is_told_with_its_line(write: Write) -> None:
    text = f"{HELLO}\nclass Fails(HelloFlow):\n    def __init__(self):\n        raise RuntimeError('no model')\n"
    told = refused(write(text))
    assert "RuntimeError: no model" in told
    assert "loading.py" not in told


@pytest.mark.parametrize("package", ["workflows.server", "llama_agents.server"])
def test_a_file_for_the_public_server_is_told_which_line_to_change(
    write: Write, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_agents.server", None)  # not installed
    monkeypatch.delitem(sys.modules, "workflows.server", raising=False)
    path = write(f"{HELLO}from {package} import WorkflowServer\nserver = WorkflowServer()\n")
    told = refused(path)
    assert "which is not installed here" in told
    assert "In line 9 write `from stepway.runner import WorkflowServer`" in told


def test_a_public_server_that_is_installed_is_told_from_ours(write: Write, tmp_path: Path) -> None:
    """Whatever version is installed: told by its class and its package."""
    path = write(
        f"{HELLO}\nclass WorkflowServer:\n    __module__ = 'llama_agents.server.server'\n\nserver = WorkflowServer()\n"
        "def never():\n    from llama_agents.server import WorkflowServer\n"
    )
    told = refused(path)
    assert "server is a server of the public package, which is installed here" in told
    assert "write `from stepway.runner import WorkflowServer`" in told


def test_another_missing_module_is_told_as_python_tells_it(write: Write) -> None:
    told = refused(write("import not_there_at_all\n"))
    assert told.endswith("ModuleNotFoundError: No module named 'not_there_at_all'")

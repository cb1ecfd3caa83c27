"""A user's file as a module, and what in it is to be served.

The file is run as `python FILE` would run it, but for its name: its folder comes first among the places of modules, and
`__name__` is the file's stem at each start, as stored journals name the classes of events. Used by `command` and `reload`.
"""

import ast
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeVar

from workflows import Workflow
from workflows.errors import WorkflowConfigurationError, WorkflowValidationError

from stepway.runner.process import InLoading, being_loaded
from stepway.runner.server import WorkflowServer
from stepway.runner.settings import SettingError
from stepway.runner.store import StoreUnavailable

T = TypeVar("T")
OURS = (
    "services",
    "shared",
    "migrations",
)  # top-level names that Stepway is installed with; users have such folders, too
PUBLIC = ("workflows.server", "llama_agents.server")
EXAMPLE = """
    from stepway.runner import WorkflowServer

    server = WorkflowServer()
    server.add_workflow("greet", GreetingWorkflow())
"""


class LoadError(Exception):
    """The file cannot be served; the text is for whoever wrote it, and may be several lines."""


class Broken(LoadError):
    """The file fails by itself; the text is what Python tells of it, from the file's own first line on."""


@dataclass(frozen=True, slots=True)
class Target:
    """What was named on the command line: `my_server.py`, or `my_server.py:name` for one of several."""

    path: Path
    name: str | None = None

    @property
    def shown(self) -> str:
        return self.path.name


def target(text: str) -> Target:
    """Raises LoadError when there is no such file, or it cannot be a module."""
    path, name = Path(text), None
    if not path.exists() and ":" in text:
        before, _, after = text.rpartition(":")
        if after.isidentifier():
            path, name = Path(before), after
    if path.is_dir():
        raise LoadError(f"{path} is a folder: name the file in it.")
    if not path.exists():
        raise LoadError(f"There is no file {path}.")
    if path.suffix != ".py":
        raise LoadError(f"{path} is not a Python file: its name does not end in .py.")
    path = path.absolute()
    _refuse_taken(path)
    return Target(path, name)


def load(found: Target) -> WorkflowServer:
    """The server of the file, or one that serves the file's workflows. Not started. Raises LoadError."""
    source = _Source(found.path)
    module = _run(found, source)
    if found.name is not None:
        return _chosen(found, module)
    servers = _distinct(module, WorkflowServer)
    if len(servers) > 1:
        raise LoadError(
            f"{found.shown} has {len(servers)} servers: {', '.join(servers)}. Choose one: {found.shown}:{next(iter(servers))}"
        )
    for server in servers.values():
        if not server.runs.served:
            name = next(iter(servers))
            raise LoadError(f'{found.shown}: {name} serves nothing: add {name}.add_workflow("name", workflow).')
        return server
    for name, value in vars(module).items():
        if _is_public(value):
            raise LoadError(
                f"{found.shown}: {name} is a server of the public package, which is installed here, and not one of Stepway's. "
                f"{source.advice()}"
            )
    workflows = _workflows(found, module)
    return _serving(found, workflows)


# ---- the module


def _refuse_taken(path: Path) -> None:
    """A module of another name than its file would make journals depend on what is loaded."""
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != str(path):
        raise LoadError(
            f"{path.name} cannot be served under this name: there is another module `{name}`. Rename the file."
        )


def _run(found: Target, source: "_Source") -> ModuleType:
    path = found.path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path} cannot be loaded as a module.")
    _come_first(path.resolve().parent)
    sys.argv = [str(path)]
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # so that its classes can be found by name while it runs and after
    being_loaded.append(found.shown)
    try:
        spec.loader.exec_module(module)
    except InLoading as error:
        raise LoadError(str(error)) from None
    except (SettingError, StoreUnavailable):  # what was said to this process, not what the file says
        raise
    except SystemExit as error:
        raise LoadError(f"{found.shown} ended the program while it was loaded (exit {error.code}).") from None
    except OSError as error:
        if error.filename == str(path):
            raise LoadError(f"{path} cannot be read: {error.strerror}.") from None
        raise Broken(_told(error, path)) from None
    except ImportError as error:
        if (advice := source.advice()) and any(name in _names(error) for name in PUBLIC):
            raise LoadError(f"{found.shown} needs the public server, which is not installed here. {advice}") from None
        raise Broken(_told(error, path)) from None
    except Exception as error:
        raise Broken(_told(error, path)) from None
    finally:
        being_loaded.pop()
    return module


def _come_first(folder: Path) -> None:
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))
    sys.meta_path.insert(0, _OwnFolders(str(folder)))


class _OwnFolders(MetaPathFinder):
    """Folders of the user's that bear our names, also those without an `__init__.py`, which would else give way to ours."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [self._folder]) if fullname in OURS else None


def _told(error: BaseException, path: Path) -> str:
    """The error as Python tells it, from the user's first line on."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != str(path):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip()


def _names(error: BaseException | None) -> Iterator[str | None]:
    """The modules that were missed, and by which."""
    while error is not None:
        if isinstance(error, ImportError):
            yield error.name
            yield from (name for name in PUBLIC if str(error).startswith(f"{name} requires"))
        error = error.__cause__ or error.__context__


class _Source:
    """The file's text, for advice."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def advice(self) -> str:
        """Which line to change so that the server is ours; "" when no line imports another one."""
        try:
            tree = ast.parse(self._path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return ""
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                imported = [node.module]
            elif isinstance(node, ast.Import):
                imported = [one.name for one in node.names]
            else:
                continue
            for name in imported:
                if name in PUBLIC:
                    return f"In line {node.lineno} write `from stepway.runner import WorkflowServer`, and nothing of {name}."
        return ""


def _is_public(value: Any) -> bool:
    return any(
        one.__name__ == "WorkflowServer" and one.__module__.split(".")[0] == "llama_agents"
        for one in type(value).__mro__
    )


# ---- what is in it


def _distinct(module: ModuleType, kind: type[T]) -> dict[str, T]:
    """The objects of a kind by the first variable that holds each."""
    found: dict[str, T] = {}
    for name, value in vars(module).items():
        if isinstance(value, kind) and not any(value is one for one in found.values()):
            found[name] = value
    return found


def _workflows(found: Target, module: ModuleType) -> Mapping[str, Workflow]:
    """Those made in the file; where there are none, one of each class in it that can be made without arguments."""
    if made := {name: one for name, one in _distinct(module, Workflow).items() if not name.startswith("_")}:
        return made
    classes = [
        one for name, one in vars(module).items()
        if inspect.isclass(one) and issubclass(one, Workflow) and one.__module__ == module.__name__
        and not name.startswith("_")
    ]  # fmt: skip
    # one that others are made from is their base, and no flow by itself
    classes = [one for one in classes if not any(one is not other and issubclass(other, one) for other in classes)]
    ready = [one for one in dict.fromkeys(classes) if _takes_nothing(one)]
    if ready:
        return {_snake(one.__name__): _make(found, one) for one in ready}
    if classes:
        name = classes[0].__name__
        raise LoadError(
            f"{found.shown}: {name} cannot be made without arguments: make it in the file, "
            f"`{_snake(name)} = {name}(…)`, and it is served as {_snake(name)}."
        )
    raise LoadError(f"{found.shown} has nothing to serve. Make a workflow in it, or a server:\n{EXAMPLE}")


def _chosen(found: Target, module: ModuleType) -> WorkflowServer:
    name = found.name or ""
    if not hasattr(module, name):
        known = [*_distinct(module, WorkflowServer), *_distinct(module, Workflow)]
        raise LoadError(f"{found.shown} has no `{name}`" + (f"; it has {', '.join(known)}." if known else "."))
    value = getattr(module, name)
    if isinstance(value, WorkflowServer):
        return value
    if isinstance(value, Workflow):
        return _serving(found, {name: value})
    if inspect.isclass(value) and issubclass(value, Workflow) and _takes_nothing(value):
        return _serving(found, {_snake(name): _make(found, value)})
    raise LoadError(f"{found.shown}: `{name}` is neither a WorkflowServer of stepway.runner nor a workflow.")


def _serving(found: Target, workflows: Mapping[str, Workflow]) -> WorkflowServer:
    server = WorkflowServer()
    for name, workflow in workflows.items():
        try:
            server.add_workflow(name, workflow)
        except (WorkflowValidationError, WorkflowConfigurationError, ValueError) as error:
            raise LoadError(f"{found.shown}: {name} cannot be served: {error}") from None
    return server


def _make(found: Target, kind: type[Workflow]) -> Workflow:
    try:
        return kind()
    except Exception as error:
        raise Broken(_told(error, found.path)) from None


def _takes_nothing(kind: type[Workflow]) -> bool:
    try:
        inspect.signature(kind).bind()
    except TypeError:
        return False
    return True


def _snake(name: str) -> str:
    """GreetingWorkflow → greeting_workflow, RAGFlow → rag_flow."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()

"""What people see of an execution's values: secret fields of its tasks, and all that leads into one, are masked.

The flow service masks with it what an execution gives before that is stored with the job, which many read; the app masks
what it shows of inputs and tasks. Pure: a definition and values come in, values go out.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from shared.flows.definition import Flow, Task, loop_body
from shared.flows.faults import FlowFaults
from shared.flows.references import Reference, ReferenceFault, compile_value
from shared.flows.task_types import find
from stepway.tasks import TaskType

MASK = "•••"

Types = Mapping[str, TaskType]
Json = Any


class Sight:
    """What people see of an execution's values: secret fields of its tasks, and all that leads into one, are masked.

    `tainted` are the inputs of the flow, and the outputs of tasks, that a secret input is made of.
    """

    def __init__(self, flow: Flow, types: Types) -> None:
        self._flow = flow
        self._types = types
        self._tainted: set[tuple[str, str]] = set()
        for task in flow.tasks:
            kind = find(types, task.type)
            if kind is not None:
                self._tainted |= {(task.name, field.name) for field in kind.outputs if field.secret}
            for value in self._secret_values(task):
                for reference in _references(value):
                    self._tainted |= _source(reference)

    def inputs(self, given: Mapping[str, Json]) -> dict[str, Json]:
        return {name: MASK if ("", name) in self._tainted else value for name, value in given.items()}

    def outputs(self, task: str, given: Mapping[str, Json]) -> dict[str, Json]:
        """Of a task, in part or whole; `task` is its name."""
        return {name: MASK if (task, name) in self._tainted else value for name, value in given.items()}

    def hidden_results(self) -> set[str]:
        """The names of the flow's outputs that are masked."""
        hidden: set[str] = set()
        for output in self._flow.outputs:
            found = _references(output.value)
            if any(
                _source(one) & self._tainted or (one.root == "output" and set(one.path[:1]) & hidden) for one in found
            ):
                hidden.add(output.name)
        return hidden

    def results(self, given: Mapping[str, Json]) -> dict[str, Json]:
        """The outputs of the flow."""
        hidden = self.hidden_results()
        return {name: MASK if name in hidden else value for name, value in given.items()}

    def task_inputs(self, task: Task, values: Mapping[str, Json]) -> dict[str, Json]:
        """The inputs of a task with what is known by now; those that cannot be resolved (yet) are left out.

        `values` have been masked.
        """
        secret = self._secret_names(task)
        shown: dict[str, Json] = {}
        for name, value in task.inputs.items():
            if name in secret:
                shown[name] = MASK
            elif task.is_loop and name == "task":
                body = loop_body(task)
                hidden = self._secret_names(body) if body is not None else set()
                inputs = {one: MASK if one in hidden else given for one, given in (body.inputs if body else {}).items()}
                shown[name] = {**value, "input": inputs} if isinstance(value, dict) else value
            else:
                try:
                    shown[name] = compile_value(value).resolve(values)
                except (ReferenceFault, FlowFaults):
                    continue
        return shown

    def _secret_names(self, task: Task) -> set[str]:
        kind = find(self._types, task.type)
        return {field.name for field in kind.inputs if field.secret} if kind is not None else set()

    def _secret_values(self, task: Task) -> Iterable[Json]:
        yield from (task.inputs[name] for name in self._secret_names(task) & task.inputs.keys())
        body = loop_body(task) if task.is_loop else None
        if body is not None:
            secret = [body.inputs[name] for name in self._secret_names(body) & body.inputs.keys()]
            yield from secret
            if any(one.root == "item" for value in secret for one in _references(value)):
                yield task.inputs.get("items")


def referred(value: Json) -> set[str]:
    """The tasks that a value refers to."""
    return {one.task for one in _references(value) if one.task is not None}


def _source(reference: Reference) -> set[tuple[str, str]]:
    """What a reference is made of: the name of a task ("" for the flow's inputs) and of its field."""
    if reference.root == "input":
        return {("", reference.path[0])} if reference.path else set()
    if reference.root == "refs" and reference.task is not None and reference.path:
        return {(reference.task, reference.path[0])}
    return set()


def _references(value: Json) -> tuple[Reference, ...]:
    try:
        return compile_value(value).references
    except FlowFaults:
        return ()

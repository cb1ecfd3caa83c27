"""What is wrong with a flow as a whole: `check` finds all of it, `accept` does so with a body from outside.

Linear in tasks, references and bytes. Depth is bounded before anything recurses. What single members may be is said in
`definition`, what references mean in `scope`, and what conditions look like in `conditions`.
"""

from collections.abc import Mapping
from typing import Any

from shared.flows import plain
from shared.flows.conditions import ORDERS, Comparison, compile_condition, leaves
from shared.flows.definition import ALIASES, Flow, FlowInput, Task, body_value, loop_body, type_names
from shared.flows.dialects import DIALECTS, read_draft
from shared.flows.dialects.words import DialectName, Words
from shared.flows.faults import Fault, Faults, member, shown
from shared.flows.given import check_groups, check_inputs, missing
from shared.flows.graph import Cycle, order
from shared.flows.plain import Json
from shared.flows.references import Template, compile_plain
from shared.flows.scope import Place, Scope
from shared.flows.task_types import find
from stepway.tasks import TaskType, ValueType

__all__ = ["accept", "check", "check_inputs"]


OUTPUT_MEMBERS = {"name", "type", "description"}


def accept(body: Any, types: Mapping[str, TaskType]) -> tuple[DialectName, Flow]:
    """The dialect and the flow of a body, its types by their own names. Raises `FlowFaults` with every fault in it."""
    reader, draft = read_draft(body)
    faults = reader.faults
    told = [fault.path for fault in faults.found if fault.path]
    for fault in check(draft, types, reader.words.dialect):
        if not any(_within(fault.path, path) for path in told):
            faults.add(fault.path, fault.code, fault.message)
    faults.raise_any()
    named = [_with_own_type(task, types) for task in draft.tasks]
    return reader.words.dialect, draft.model_copy(update={"tasks": named})


def check(flow: Flow, types: Mapping[str, TaskType], dialect: DialectName = "refs") -> list[Fault]:
    """Every fault of a flow; none means that it can run. Paths and references are as in the dialect."""
    faults = Faults()
    try:
        _Check(flow, types, DIALECTS[dialect], faults).all()
    except _Enough:
        pass
    return faults.found


def _within(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}["))


def _with_own_type(task: Task, types: Mapping[str, TaskType]) -> Task:
    """A user's spelling may leave open where words end (`GitHub` is `github`); the type itself knows."""
    kind = find(types, task.type)
    if kind is not None and kind.name != task.type:
        own, spelled = type_names(task.written_type, kind.name)
        task = task.model_copy(update={"type": own, "spelled": spelled})
    body = loop_body(task) if task.is_loop else None
    if body is not None:
        named = body_value(_with_own_type(body, types))
        task = task.model_copy(update={"inputs": {**task.inputs, "task": named}})
    return task


class _Enough(Exception):
    """There are more faults than are told."""


class _Check:
    """One check of one flow."""

    def __init__(self, flow: Flow, types: Mapping[str, TaskType], words: Words, faults: Faults) -> None:
        self.flow, self.types, self.words, self.faults = flow, types, words, faults
        self.found: dict[str, TaskType | None] = {}
        positions: dict[str, int] = {}
        for position, task in enumerate(flow.tasks):
            positions.setdefault(task.name, position)
        self.scope = Scope(
            words=words,
            faults=faults,
            sequential=flow.execution == "sequential",
            inputs={one.name: one.type for one in flow.inputs},
            positions=positions,
            kinds=[self._kind(task.type) for task in flow.tasks],
            needed=[set() for _ in flow.tasks],
        )

    def all(self) -> None:
        self._names(self.flow.inputs, self.words.input, "name")
        self._names(self.flow.tasks, "tasks", self.words.task_name)
        self._names(self.flow.outputs, self.words.output, "name")
        for index, one in enumerate(self.flow.inputs):
            self._input(one, f"{self.words.input}[{index}]")
        for position, task in enumerate(self.flow.tasks):
            if self.faults.full:
                raise _Enough
            self._task(task, self.scope.kinds[position], f"tasks[{position}]", Place(position))
        self._outputs()
        self._circles()

    def _names(self, items: list[Any], path: str, word: str) -> None:
        seen: set[str] = set()
        for index, one in enumerate(items):
            if one.name and one.name in seen:
                message = f"The name `{shown(one.name)}` is used before; give each its own."
                self.faults.add(f"{path}[{index}].{word}", "duplicate_name", message)
            seen.add(one.name)

    def _input(self, one: FlowInput, path: str) -> None:
        at = member(path, "default")
        if fault := plain.problem(one.default, at):
            self.faults.add(fault.path, fault.code, fault.message)
        elif one.default is not None and not plain.is_of(one.default, one.type):
            self.faults.add(at, "wrong_type", f"The default must be of the input's type, {one.type}.")

    def _task(self, task: Task, kind: TaskType | None, path: str, place: Place) -> None:
        if kind is None and task.type:
            hint = self.faults.nearest(task.type, self.types) or " GET /task-types lists all."
            message = f"There is no type of task `{shown(task.written_type)}`.{hint}"
            self.faults.add(member(path, "type"), "unknown_type", message)
        self._inputs(task, kind, member(path, self.words.input), place)
        self._condition(task.condition, member(path, "condition"), place)
        self._fallback(task, kind, path, place)
        self._declared(task.outputs, kind, member(path, self.words.output))
        for index, name in enumerate(task.depends_on):
            self.scope.need(name, place, f"{path}.depends_on[{index}]")

    def _inputs(self, task: Task, kind: TaskType | None, path: str, place: Place) -> None:
        looping = task.is_loop and not place.looping
        for name, value in task.inputs.items():
            at = member(path, name)
            field = None if kind is None else kind.input(name)
            if kind is not None and field is None:
                names = [one.name for one in kind.inputs]
                hint = self.faults.nearest(name, names) or f" It has {', '.join(names) or 'none'}."
                message = f"{kind.name} has no input `{shown(name)}`.{hint}"
                self.faults.add(at, "unknown_input", message)
            if looping and name == "task":
                self._loop(task, at, place)
            elif (template := self._template(value, at)) is not None:
                wanted: ValueType = "any" if field is None else field.type
                self.scope.expect(template, wanted, place, () if field is None else field.choices)
        if kind is not None:
            given = [name for name, value in task.inputs.items() if value is not None]
            for field in kind.inputs:
                if field.required and field.default is None and field.name not in given:
                    self.faults.add(member(path, field.name), "missing", missing(field))
            check_groups(kind, given, path, self.faults)

    def _loop(self, task: Task, path: str, place: Place) -> None:
        if fault := plain.problem(task.inputs["task"], path):
            self.faults.add(fault.path, fault.code, fault.message)
            return
        body = loop_body(task)
        if body is None:
            message = f"Write the task here, as an object with `type` and `{self.words.input}`."
            self.faults.add(path, "wrong_type", message)
        elif body.is_loop:
            message = "A loop cannot be the task of a loop; put the inner one into a flow and use flow.subworkflow."
            self.faults.add(member(path, "type"), "not_allowed", message)
        else:
            self._task(body, self._kind(body.type), path, Place(place.task, looping=True))

    def _condition(self, condition: Json, path: str, place: Place) -> None:
        if fault := plain.problem(condition, path):
            self.faults.add(fault.path, fault.code, fault.message)
            return
        for leaf in leaves(compile_condition(condition, path, self.faults)):
            if isinstance(leaf, Template):
                self.scope.expect(leaf, "boolean", place)
            else:
                self._comparison(leaf, place)

    def _comparison(self, leaf: Comparison, place: Place) -> None:
        for template in (leaf.left, leaf.right):
            kinds = [] if template is None else [self.scope.type_of(use, place) for use in template.uses]
            if template is None or leaf.op not in ORDERS or not (template.uses and template.uses[0].whole):
                continue
            if type(template.tree) is tuple and kinds[0] not in (None, "number", "text", "any"):
                message = f"`{leaf.op}` compares numbers or texts, and this is of type {kinds[0]}; use eq, or something in it."
                self.faults.add(template.path, "type_mismatch", message)

    def _fallback(self, task: Task, kind: TaskType | None, path: str, place: Place) -> None:
        at = member(path, "fallback")
        if task.on_error == "default" and task.fallback is None:
            self.faults.add(at, "missing", 'Give `fallback`, the outputs that `on_error` "default" uses.')
        if task.fallback is None:
            return
        if task.on_error != "default":
            self.faults.add(
                at, "not_allowed", '`fallback` is used with `on_error` "default" only; set that, or leave it out.'
            )
        for name, value in task.fallback.items():
            where = member(at, name)
            output = None if kind is None else kind.output(name)
            if kind is not None and output is None:
                self._no_output(kind, name, where)
            if (template := self._template(value, where)) is not None:
                self.scope.expect(template, "any" if output is None else output.type, place)

    def _declared(self, outputs: Json, kind: TaskType | None, path: str) -> None:
        """The outputs that a task lists: a help for its readers, so they have to be true."""
        if outputs is None:
            return
        listed = _listed_outputs(outputs, path)
        if listed is None:
            message = (
                "List outputs as `[{name, type, description}]` or as an object from name to type, or leave them out."
            )
            self.faults.add(path, "wrong_type", message)
            return
        for where, name, written in listed:
            output = None if kind is None else kind.output(name)
            if kind is not None and output is None:
                self._no_output(kind, name, where)
            elif output is not None and written and ALIASES.get(written, written) != output.type:
                self.faults.add(where, "type_mismatch", f"The output `{name}` is of type {output.type}; write that.")

    def _no_output(self, kind: TaskType, name: str, path: str) -> None:
        names = [one.name for one in kind.outputs]
        hint = self.faults.nearest(name, names) or f" It has {', '.join(names) or 'none'}."
        self.faults.add(path, "unknown_reference", f"{kind.name} has no output `{shown(name)}`.{hint}")

    def _outputs(self) -> None:
        before: dict[str, ValueType] = {}
        for index, one in enumerate(self.flow.outputs):
            path = f"{self.words.output}[{index}].value"
            if (template := self._template(one.value, path)) is not None:
                self.scope.expect(template, one.type, Place(None, outputs=before))
            before[one.name] = one.type

    def _circles(self) -> None:
        names = [str(position) for position in range(len(self.flow.tasks))]
        needed = {names[position]: {names[one] for one in others} for position, others in enumerate(self.scope.needed)}
        try:
            order(needed)
        except Cycle as circle:
            tasks = [self.flow.tasks[int(one)].name for one in circle.tasks]
            trail = " → ".join([*tasks[:10], *(["…"] if len(tasks) > 10 else []), tasks[0]])
            message = f"These tasks wait for each other: {trail}. Remove one of the references."
            self.faults.add(f"tasks[{circle.tasks[0]}]", "cycle", message)

    def _template(self, value: Json, path: str) -> Template | None:
        if fault := plain.problem(value, path):
            self.faults.add(fault.path, fault.code, fault.message)
            return None
        return compile_plain(value, path, self.faults)

    def _kind(self, spelled: str) -> TaskType | None:
        if spelled not in self.found:
            self.found[spelled] = find(self.types, spelled) if spelled else None
        return self.found[spelled]


def _listed_outputs(outputs: Json, path: str) -> list[tuple[str, str, str]] | None:
    """Path, name and type ("" for none) of each output that a task lists; None for another form."""
    if type(outputs) is dict:
        listed = [(member(path, name), name, given) for name, given in outputs.items()]
    elif type(outputs) is list and all(type(one) is dict and set(one) <= OUTPUT_MEMBERS for one in outputs):
        listed = [(f"{path}[{index}]", one.get("name"), one.get("type", "")) for index, one in enumerate(outputs)]
    else:
        return None
    return listed if all(type(name) is str and type(given) is str for _, name, given in listed) else None

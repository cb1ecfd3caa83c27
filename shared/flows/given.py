"""Values against what is declared: the inputs of an execution, of a task about to run, and the outputs of a flow."""

from collections.abc import Mapping
from typing import Any

from shared.flows import plain
from shared.flows.definition import Flow
from shared.flows.dialects import DIALECTS
from shared.flows.dialects.words import DialectName
from shared.flows.faults import Fault, Faults, FlowFaults, member, shown
from shared.flows.plain import Json
from shared.flows.references import ReferenceFault, compile_value
from shared.flows.scope import FILE_HINT
from stepway.tasks import Field, TaskType, ValueType


def check_inputs(flow: Flow, given: Any, dialect: DialectName = "refs") -> dict[str, Json]:
    """What an execution starts with: what was given, and defaults; null for what is not required and not given.

    `given`: an object, or None for none. Raises `FlowFaults`, with paths as in the dialect (`input.x`, `inputs.x`).
    """
    fields = [Field(one.name, one.type, one.description, one.required, one.default) for one in flow.inputs]
    path = DIALECTS[dialect].input
    if fault := plain.problem(given, path):
        raise FlowFaults([fault])
    return _filled(fields, given, path, "this flow")


def task_inputs(kind: TaskType, given: Any, path: str = "input") -> dict[str, Json]:
    """What `kind.run` is given: what was resolved, with defaults; null counts as not given. Raises `FlowFaults`.

    Large values are taken; kept ones (`is_kept`) must have been read back.
    """
    filled = _filled(kind.inputs, given, path, kind.name)
    faults = Faults()
    present = [name for name, value in given.items() if value is not None] if given else []
    check_groups(kind, present, path, faults)
    faults.raise_any()
    return filled


def check_groups(kind: TaskType, present: list[str], path: str, faults: Faults) -> None:
    """That exactly one input of each group in `one_of` is present."""
    for group in kind.one_of:
        both = [name for name in group if name in present]
        if len(both) != 1:
            found = f"given are {' and '.join(f'`{name}`' for name in both)}" if both else "none is given"
            names = ", ".join(f"`{name}`" for name in group)
            faults.add(path, "one_of", f"{kind.name} takes exactly one of {names}; {found}.")


def flow_outputs(flow: Flow, values: Mapping[str, Json], dialect: DialectName = "refs") -> dict[str, Json]:
    """The outputs of a flow whose tasks have ended. `values` as for `Template.resolve`.

    Raises `FlowFaults` for one that cannot be resolved, or is neither null, nor kept, nor of its type.
    """
    done: dict[str, Json] = {}
    faults = Faults()
    for index, one in enumerate(flow.outputs):
        path = f"{DIALECTS[dialect].output}[{index}].value"
        try:
            value = compile_value(one.value, path).resolve({**values, "output": done})
        except ReferenceFault as error:
            faults.add(error.path, "unknown_reference", error.message)
            continue
        if value is not None and not plain.is_of(value, one.type) and not is_kept(value):
            message = f"The output `{one.name}` became {plain.type_of(value)}, and it is declared as {one.type}."
            faults.add(path, "wrong_type", message)
        done[one.name] = value
    faults.raise_any()
    return done


def is_kept(value: Json) -> bool:
    """Whether this stands for a value that was too large, and is kept as an artifact: a file with `"spilled": true`."""
    return plain.is_of(value, "file") and value.get("spilled") is True


def _filled(fields: Any, given: Any, path: str, owner: str) -> dict[str, Json]:
    if given is None:
        given = {}
    if type(given) is not dict:
        raise FlowFaults([Fault(path, "wrong_type", "The inputs must be an object of names and values.")])
    faults = Faults()
    known = {one.name: one for one in fields}
    for name in given:
        if name not in known:
            hint = faults.nearest(name, known)
            faults.add(member(path, name), "unknown_input", f"There is no input `{shown(name)}` in {owner}.{hint}")
    filled = {one.name: _one(one, given.get(one.name), member(path, one.name), faults) for one in fields}
    faults.raise_any()
    return filled


def _one(field: Field, value: Json, path: str, faults: Faults) -> Json:
    if value is None:
        if field.required and field.default is None:
            faults.add(path, "missing", missing(field))
        return field.default
    if not plain.is_of(value, field.type):
        hint = FILE_HINT if field.type == "file" else ""
        faults.add(path, "wrong_type", f"`{field.name}` must be of type {field.type}{hint}.")
    elif field.choices and not any(plain.same(value, one) for one in field.choices):
        faults.add(path, "not_allowed", f"`{field.name}` must be one of {', '.join(map(shown, field.choices))}.")
    return value


def missing(field: Field) -> str:
    """The sentence for a required input that is not there."""
    kind: ValueType = field.type
    about = f": {field.description[:200].rstrip('.')}" if field.description else ""
    return f"Give `{field.name}` ({kind}){about}."

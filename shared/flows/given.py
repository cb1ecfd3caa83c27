"""Values against what is declared: what an execution is given, and which inputs a task has."""

from collections.abc import Collection
from typing import Any

from shared.flows import plain
from shared.flows.definition import Flow, FlowInput
from shared.flows.dialects import DIALECTS
from shared.flows.dialects.words import DialectName
from shared.flows.faults import Fault, Faults, FlowFaults, member, shown
from shared.flows.plain import FILE_HINT, Json
from stepway.tasks import Field, TaskType


def check_inputs(flow: Flow, given: Any, dialect: DialectName = "refs") -> dict[str, Json]:
    """What an execution starts with: what was given, and defaults; null for what is not required and not given.

    `given`: an object, or None for none. Raises `FlowFaults`, with paths as in the dialect (`input.x`, `inputs.x`).
    """
    path = DIALECTS[dialect].input
    given = {} if given is None else given
    if type(given) is not dict:
        raise FlowFaults([Fault(path, "wrong_type", "The inputs must be an object of names and values.")])
    if fault := plain.problem(given, path):
        raise FlowFaults([fault])
    faults = Faults()
    known = {one.name: one for one in flow.inputs}
    for name in given:
        if name not in known:
            hint = faults.nearest(name, known)
            faults.add(member(path, name), "unknown_input", f"There is no input `{shown(name)}` in this flow.{hint}")
    filled = {name: _filled(one, given.get(name), member(path, name), faults) for name, one in known.items()}
    faults.raise_any()
    return filled


def _filled(one: FlowInput, value: Json, path: str, faults: Faults) -> Json:
    if value is None:
        if one.required and one.default is None:
            faults.add(path, "missing", missing(one))
        return one.default
    if not plain.is_of(value, one.type):
        hint = FILE_HINT if one.type == "file" else ""
        faults.add(path, "wrong_type", f"`{one.name}` must be of type {one.type}{hint}.")
    return value


def check_groups(kind: TaskType, present: Collection[str], path: str, faults: Faults) -> None:
    """That exactly one input of each group in `one_of` is present."""
    for group in kind.one_of:
        both = [name for name in group if name in present]
        if len(both) != 1:
            found = f"given are {' and '.join(f'`{name}`' for name in both)}" if both else "none is given"
            names = ", ".join(f"`{name}`" for name in group)
            faults.add(path, "one_of", f"{kind.name} takes exactly one of {names}; {found}.")


def missing(one: Field | FlowInput) -> str:
    """The sentence for a required input that is not there."""
    about = f": {one.description[:200].rstrip('.')}" if one.description else ""
    return f"Give `{one.name}` ({one.type}){about}."

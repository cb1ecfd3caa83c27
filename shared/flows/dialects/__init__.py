"""The two ways in which people write flows, one module each. A body is told apart by its members."""

from collections.abc import Iterator
from typing import Any

from shared.flows import plain
from shared.flows.definition import Flow
from shared.flows.dialects import refs, tasks
from shared.flows.dialects.reading import Reader
from shared.flows.dialects.words import DialectName, Words
from shared.flows.dialects.writing import write_flow
from shared.flows.faults import Fault, FlowFaults

DIALECTS: dict[DialectName, Words] = {"refs": refs.WORDS, "tasks": tasks.WORDS}

HOW = (
    "Write a flow with `name`, `input`, `output` and tasks with `ref` and `input` (dialect refs), "
    "or with `title`, `inputs`, `outputs` and tasks with `name` and `inputs` (dialect tasks)."
)


def read(body: Any) -> tuple[DialectName, Flow]:
    """The dialect of a body, and the flow that it describes. Raises `FlowFaults` with every fault of its form."""
    reader, flow = read_draft(body)
    reader.faults.raise_any()
    return reader.words.dialect, flow


def write(flow: Flow, dialect: DialectName) -> dict[str, Any]:
    """The body of a flow in a dialect. Members with their default values are left out."""
    return write_flow(flow, DIALECTS[dialect])


def read_draft(body: Any) -> tuple[Reader, Flow]:
    """As `read`, but faults of single members are left in the reader, and the flow is what could be understood.

    So that the whole can be checked as well. Raises `FlowFaults` for a body of which nothing can be understood.
    """
    if type(body) is not dict:
        raise FlowFaults([Fault("", "wrong_type", "The body must be a JSON object.")])
    if fault := plain.problem(body):
        raise FlowFaults([fault])
    reader = Reader(DIALECTS[tell(body)])
    return reader, reader.flow(body)


def tell(body: dict[str, Any]) -> DialectName:
    """Which dialect a body is in. Raises `FlowFaults`: `mixed_dialects`, `no_dialect`."""
    marks = {name: next(_marks(body, words), None) for name, words in DIALECTS.items()}
    if marks["refs"] is not None and marks["tasks"] is not None:
        one, other = marks["refs"], marks["tasks"]
        message = f"`{one}` belongs to the dialect refs, `{other}` to the dialect tasks. {HOW}"
        raise FlowFaults([Fault(other, "mixed_dialects", message)])
    for name, mark in marks.items():
        if mark is not None:
            return name
    raise FlowFaults([Fault("", "no_dialect", HOW)])


def _marks(body: dict[str, Any], words: Words) -> Iterator[str]:
    yield from (name for name in words.head_marks if name in body)
    items = body.get("tasks")
    for index, item in enumerate(items if type(items) is list else ()):
        if type(item) is dict:
            yield from (f"tasks[{index}].{name}" for name in words.task_marks if name in item)

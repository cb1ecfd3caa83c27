"""The dialect refs: `{name, input, tasks: [{ref, type, input}], output}`, with `{{input.x}}` and `{{refs.R.output.y}}`."""

from typing import Any

from shared.flows.definition import Flow
from shared.flows.dialects.reading import read_flow
from shared.flows.dialects.words import COMMON, Words
from shared.flows.dialects.writing import write_flow
from shared.flows.references import CANONICAL

WORDS = Words(
    dialect="refs",
    notation=CANONICAL,
    head={
        "name": "name",
        "description": "description",
        "execution": "execution",
        "input": "inputs",
        "tasks": "tasks",
        "output": "outputs",
    },
    task={"ref": "name", "type": "type", "input": "inputs", **COMMON, "output": "outputs"},
    head_marks=("name", "input", "output"),
    task_marks=("ref", "input", "output"),
)


def read(body: dict[str, Any]) -> Flow:
    """Raises `FlowFaults`."""
    return read_flow(body, WORDS)


def write(flow: Flow) -> dict[str, Any]:
    return write_flow(flow, WORDS)

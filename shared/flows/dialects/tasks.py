"""The dialect tasks: `{title, inputs, tasks: [{name, type, inputs}], outputs}`, `{{inputs.x}}`, `{{tasks.T.outputs.y}}`.

Inputs of a task are an object or a list of `{name, value}`; they are written as an object.
"""

from typing import Any

from shared.flows.definition import Flow
from shared.flows.dialects.reading import read_flow
from shared.flows.dialects.words import COMMON, Words
from shared.flows.dialects.writing import write_flow
from shared.flows.references import Notation

WORDS = Words(
    dialect="tasks",
    notation=Notation("inputs", "tasks", "outputs"),
    head={
        "title": "name",
        "description": "description",
        "execution": "execution",
        "inputs": "inputs",
        "tasks": "tasks",
        "outputs": "outputs",
    },
    task={"name": "name", "type": "type", "inputs": "inputs", **COMMON, "outputs": "outputs"},
    head_marks=("title", "inputs", "outputs"),
    task_marks=("name", "inputs", "outputs"),
    named_lists=True,
)


def read(body: dict[str, Any]) -> Flow:
    """Raises `FlowFaults`."""
    return read_flow(body, WORDS)


def write(flow: Flow) -> dict[str, Any]:
    return write_flow(flow, WORDS)

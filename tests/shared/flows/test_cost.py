"""What a flow costs to be read and checked grows with its size and no faster: in calls, as time depends on the machine."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from shared.flows.faults import FlowFaults
from shared.flows.graph import needs, order
from shared.flows.validation import accept, check
from tests.shared.flows.kinds import TYPES


def body(tasks: int, references: int, **members: Any) -> dict[str, Any]:
    def text(index: int) -> str:
        before = [f"{{{{refs.t{max(0, index - 1 - n)}.output.characters}}}}" for n in range(references) if index]
        return " ".join(["{{input.a}}", *before])

    return {
        "name": "x",
        "input": [{"name": "a", "type": "text"}],
        "tasks": [{"ref": f"t{n}", "type": "Text.Size", "input": {"text": text(n)}} for n in range(tasks)],
        **members,
    }


def broken(tasks: int, references: int) -> dict[str, Any]:
    made = body(tasks, references)
    for task in made["tasks"]:
        task["type"] = "Text.Sise"
        task["typ"] = task["input"]["text"] + "{{refs.nobody.output.x}}"
        task["input"]["txt"] = "{{refs.t99999.output.x}}"
    return made


def calls(work: Callable[[], object]) -> int:
    """How many functions, ours and built in, a piece of work calls."""
    number = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return number


def whole(made: dict[str, Any]) -> None:
    try:
        _, flow = accept(made, TYPES)
    except FlowFaults:
        return
    assert check(flow, TYPES) == []
    assert len(order(needs(flow))) == len(flow.tasks)


@pytest.mark.parametrize(
    "make", [body, lambda *size: body(*size, execution="parallel"), broken], ids=["listed", "parallel", "bad"]
)
@pytest.mark.parametrize("references", [1, 10])
def test_four_times_the_tasks_cost_four_times_the_calls(make: Callable[..., dict[str, Any]], references: int) -> None:
    few, many = make(60, references), make(240, references)
    whole(few)  # what is done once, is done
    assert calls(lambda: whole(many)) < 4.4 * calls(lambda: whole(few)) + 1000


def test_a_thousand_tasks_are_taken() -> None:
    _, flow = accept(body(1000, 2), TYPES)
    assert len(flow.tasks) == 1000
    assert check(flow, TYPES) == []

"""Which task waits for which, in both kinds of execution."""

from typing import Any

import pytest

from shared.flows import dialects
from shared.flows.graph import Cycle, needs, order
from tests.shared.flows.kinds import BASE, edited


def task(name: str, uses: str = "", **members: Any) -> dict[str, Any]:
    return {"ref": name, "type": "text.size", "input": {"text": uses}, **members}


def needed(*tasks: dict[str, Any], execution: str = "parallel") -> dict[str, set[str]]:
    return needs(dialects.read({"name": "x", "execution": execution, "tasks": list(tasks)})[1])


def test_references_conditions_fallbacks_and_depends_on_are_all_needs() -> None:
    assert needed(
        task("a"),
        task("b", "{{refs.a.output.x}}"),
        task("c", condition={"not": {"left": "{{refs.a.output.n}}", "op": "gt", "right": "{{refs.b.output.n}}"}}),
        task("d", on_error="default", fallback={"x": ["{{refs.c.output.x}}"]}),
        task("e", depends_on=["a", "d"]),
        task("f", "{{input.a}}"),
    ) == {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"c"}, "e": {"a", "d"}, "f": set()}


def test_the_body_of_a_loop_needs_for_the_loop() -> None:
    body = edited(
        {"execution": "parallel", "tasks.3.input.task.input.text": "{{refs.size.output.characters}} {{item}}"}
    )
    assert needs(dialects.read(body)[1])["loop"] == {"size"}


def test_in_sequence_each_task_needs_the_one_before() -> None:
    tasks = [task("a"), task("b"), task("c", "{{refs.a.output.x}}")]
    assert needed(*tasks, execution="sequential") == {"a": set(), "b": {"a"}, "c": {"a", "b"}}


def test_names_that_the_flow_does_not_have_are_left_out() -> None:
    assert needed(task("a", "{{refs.zz.output.x}}", depends_on=["yy"])) == {"a": set()}


def test_order_keeps_the_list_where_it_can() -> None:
    assert order({"c": {"a"}, "a": set(), "b": set()}) == ["a", "b", "c"]
    assert order(needs(dialects.read(BASE)[1])) == ["download", "extract", "size", "loop"]


def test_a_circle_is_named() -> None:
    with pytest.raises(Cycle, match="c → b → d → c") as found:
        order({"a": set(), "x": {"c"}, "b": {"a", "d"}, "c": {"b"}, "d": {"c"}})
    assert sorted(found.value.tasks) == ["b", "c", "d"]


def test_a_long_chain_needs_no_stack() -> None:
    chain = {f"t{n}": {f"t{n - 1}"} if n else set() for n in range(20_000)}
    assert len(order(chain)) == 20_000
    chain["t0"] = {"t19999"}
    with pytest.raises(Cycle):
        order(chain)

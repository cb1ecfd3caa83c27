"""Conditions are strictly true or false, or a fault that says which part is neither."""

from typing import Any

import pytest

from shared.flows.conditions import ConditionFault, compile_condition, evaluate, uses
from shared.flows.faults import Faults

VALUES: dict[str, Any] = {
    "input": {
        "n": 3,
        "t": "beta",
        "yes": True,
        "no": False,
        "list": [1, "a", {"k": 1}],
        "object": {"k": 1},
        "none": None,
    },
    "refs": {"skipped": {"output": {}}},
}


def compare(left: Any, op: str, right: Any) -> dict[str, Any]:
    return {"left": left, "op": op, "right": right}


@pytest.mark.parametrize(
    ("condition", "result"),
    [
        (None, True),
        (True, True),
        (False, False),
        ("{{input.yes}}", True),
        ("{{input.no}}", False),
        (compare("{{input.n}}", "eq", 3), True),
        (compare("{{input.n}}", "eq", 3.0), True),
        (compare("{{input.n}}", "eq", "3"), False),
        (compare("{{input.yes}}", "eq", 1), False),
        (compare("{{input.list}}", "eq", [1, "a", {"k": 1}]), True),
        (compare("{{input.list}}", "eq", [True, "a", {"k": 1}]), False),
        (compare("{{input.object}}", "eq", {"k": True}), False),
        (compare("{{input.none}}", "eq", None), True),
        (compare("{{input.none}}", "ne", False), True),
        (compare("{{input.n}}", "ne", 4), True),
        (compare("{{input.n}}", "lt", 4), True),
        (compare("{{input.n}}", "le", 3), True),
        (compare("{{input.n}}", "gt", 3), False),
        (compare("{{input.n}}", "ge", 3.5), False),
        (compare("{{input.t}}", "gt", "alpha"), True),
        (compare("<{{input.t}}>", "eq", "<beta>"), True),
        (compare("a", "in", "{{input.list}}"), True),
        (compare({"k": 1}, "in", "{{input.list}}"), True),
        (compare(True, "in", "{{input.list}}"), False),
        (compare("et", "in", "{{input.t}}"), True),
        (compare("k", "in", "{{input.object}}"), True),
        (compare("{{input.list}}", "contains", 1), True),
        (compare("{{input.t}}", "contains", "x"), False),
        ({"left": "{{input.n}}", "op": "exists"}, True),
        ({"left": "{{input.no}}", "op": "exists"}, True),
        ({"left": "{{input.none}}", "op": "exists"}, False),
        ({"left": "{{input.object.deep.er}}", "op": "exists"}, False),
        ({"left": "{{refs.skipped.output.x}}", "op": "exists"}, False),
        ({"not": "{{input.no}}"}, True),
        ({"all": [True, "{{input.yes}}"]}, True),
        ({"any": [False, {"not": True}]}, False),
        ({"all": [{"left": "{{input.none}}", "op": "exists"}, compare("{{input.none}}", "gt", 3)]}, False),
        ({"any": [True, "{{input.n}}"]}, True),
    ],
    ids=str,
)
def test_a_condition_holds_or_not(condition: Any, result: bool) -> None:
    assert evaluate(condition, VALUES) is result


@pytest.mark.parametrize(
    ("condition", "path", "part"),
    [
        ("{{input.n}}", "condition", "`{{input.n}}` is a number"),
        ("{{input.t}}", "condition", "is a text"),
        ("{{input.none}}", "condition", "is null"),
        ("{{refs.skipped.output.ok}}", "condition", "is null"),
        ("{{refs.nobody.output.ok}}", "condition", "not known here"),
        (compare("{{input.n}}", "lt", "4"), "condition", "a number with a text"),
        (compare("{{input.yes}}", "lt", True), "condition", "two numbers or two texts"),
        (compare("{{input.none}}", "gt", 1), "condition", "null with a number"),
        (compare(1, "in", "{{input.t}}"), "condition", "looks for a number in a text"),
        (compare("a", "in", 3), "condition", "it takes a list"),
        (compare("{{input.object.x}}", "eq", 3), "condition.left", "no member `x`"),
        ({"all": [True, {"not": "{{input.n}}"}]}, "condition.all[1].not", "must be true or false"),
        ("true", "condition", "not one whole reference"),
        ({"any": []}, "condition.any", "1 to 100"),
        (3, "condition", "A condition is"),
    ],
    ids=str,
)
def test_what_is_neither_is_a_fault_at_its_part(condition: Any, path: str, part: str) -> None:
    with pytest.raises(ConditionFault) as fault:
        evaluate(condition, VALUES)
    assert fault.value.path == path
    assert part in fault.value.message


def test_values_too_deep_to_be_compared_are_a_fault() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    for op in ("eq", "in"):
        with pytest.raises(ConditionFault):
            evaluate(compare("{{input.a}}", op, "{{input.b}}"), {"input": {"a": deep, "b": [deep]}})


def test_a_condition_that_is_too_deep_is_a_fault_even_unchecked() -> None:
    condition: Any = True
    for _ in range(5000):
        condition = {"not": condition}
    with pytest.raises(ConditionFault):
        evaluate(condition, VALUES)


def test_a_compiled_condition_is_used_many_times_and_knows_its_references() -> None:
    faults = Faults()
    compiled = compile_condition(
        {"any": ["{{input.no}}", compare("{{refs.a.output.n}}", "gt", "{{input.n}}")]}, "c", faults
    )
    assert not faults.found
    assert [use.reference.spell() for use in uses(compiled)] == ["input.no", "refs.a.output.n", "input.n"]
    for number, result in ((1, False), (9, True)):
        assert evaluate(compiled, {**VALUES, "refs": {"a": {"output": {"n": number}}}}) is result

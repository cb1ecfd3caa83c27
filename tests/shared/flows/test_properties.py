"""What holds for every body, every flow and every value that hypothesis can think of."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.flows import dialects
from shared.flows.conditions import ConditionFault, evaluate
from shared.flows.definition import Flow, loop_body
from shared.flows.faults import CODES, MAX_FAULTS, FlowFaults
from shared.flows.given import check_inputs
from shared.flows.graph import needs, order
from shared.flows.references import CANONICAL, BadReference, Notation, ReferenceFault, compile_value, parse, spell
from shared.flows.validation import accept, check
from stepway.tasks import Field, ValueType
from tests.shared.flows.kinds import TYPES

TASKS = Notation("inputs", "tasks", "outputs")
FEW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

references = st.sampled_from(
    ["{{input.a}}", "{{ input.b }}", "{{refs.t0.output.text}}", "{{refs.t1.output.result.x.0}}", "{{inputs.a}}", "{{item}}",
     "{{tasks.t0.outputs.text}}", "{{index}}", "{{output.o}}", "\\{{", "{{", "}}", "\\", "{", "x", "{{input}}", "{{nope}}"]
)  # fmt: skip
texts = st.lists(references, max_size=4).map("".join) | st.text(max_size=20)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts
words = st.sampled_from(
    ["name", "title", "ref", "type", "input", "inputs", "output", "outputs", "tasks", "condition", "retry", "attempts", "value",
     "on_error", "fallback", "depends_on", "timeout", "left", "op", "right", "all", "not", "task", "default", "required"]
)  # fmt: skip
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=5), inner, max_size=5),
    max_leaves=25,
)
shaped = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | anything,
        "title": st.just("x") | anything,
        "tasks": st.lists(
            st.fixed_dictionaries(
                {"type": st.sampled_from([*TYPES, "Flow.ForEach", "x"]) | anything},
                optional=dict.fromkeys(("ref", "name", "input", "inputs", "condition", "retry", "fallback"), anything),
            )
            | anything,
            max_size=3,
        ),
        "input": anything,
        "outputs": anything,
        "output": anything,
    },
)


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """What a call gives, or the error of the core that it raises; any other error is the test's failure."""
    try:
        return call(*args)
    except (FlowFaults, ReferenceFault, ConditionFault, BadReference) as error:
        return error


@given(anything | shaped)
@FEW
def test_any_json_is_refused_with_faults_or_is_a_flow(body: Any) -> None:
    result = outcome(accept, body, TYPES)
    if isinstance(result, FlowFaults):
        assert 1 <= len(result.faults) <= MAX_FAULTS + 1
        assert all(fault.code in CODES and fault.message for fault in result.faults)
    else:
        dialect, flow = result
        assert dialects.read(dialects.write(flow, dialect)) == (dialect, flow)


@given(anything | shaped, anything)
@FEW
def test_any_inputs_are_refused_with_faults_or_taken(body: Any, sent: Any) -> None:
    fields = [{"name": f"a{n}", "type": kind, "required": n % 2 == 0} for n, kind in enumerate(TYPE_NAMES)]
    _, flow = dialects.read({"name": "x", "input": fields, "tasks": [{"ref": "t", "type": "x"}]})
    for one in (body, sent, {"a0": sent}, {f"a{n}": sent for n in range(len(TYPE_NAMES))}):
        result = outcome(check_inputs, flow, one)
        assert isinstance(result, FlowFaults) or set(result) == {field["name"] for field in fields}


TYPE_NAMES: list[ValueType] = ["text", "number", "boolean", "file", "object", "list", "any"]
LITERALS: dict[ValueType, st.SearchStrategy[Any]] = {
    "text": st.sampled_from(
        ["x", "\\{{x}}", "\\\\", "é", "a {{input.text}} b", "{{index_}}".replace("{{index_}}", "n{{input}}")]
    ),
    "number": st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "file": st.just({"artifact_id": "7f"}),
    "object": st.just({"a": ["{{input.number}}", {"b": "{{input.any.x.0}}"}]}),
    "list": st.just([1, "{{input.text}}"]),
    "any": st.sampled_from([1, "x", {"a": None}, ["{{input.file.name}}"], True]),
}


@st.composite
def good_flows(draw: st.DrawFn) -> dict[str, Any]:
    """Bodies in refs that are flows: each input is fed by a literal, an input of the flow or a task before."""
    made: list[tuple[str, Field]] = []
    tasks = []
    for index in range(draw(st.integers(1, 5))):
        kind = TYPES[draw(st.sampled_from([name for name in TYPES if name != "flow.foreach"]))]
        source = made if draw(st.booleans()) else []
        groups = {name: group for group in kind.one_of for name in group}
        chosen = {group: draw(st.sampled_from(group)) for group in kind.one_of}
        inputs = {
            field.name: draw(fed(field, source))
            for field in kind.inputs
            if (field.name not in groups or chosen[groups[field.name]] == field.name)
            and (field.required or field.name in groups or draw(st.booleans()))
        }
        spelled = draw(st.sampled_from([kind.name, kind.name.title(), kind.name.upper()]))
        task: dict[str, Any] = {"ref": f"t{index}", "type": spelled, "input": inputs}
        if draw(st.booleans()) and not any(field.type == "file" for field in kind.inputs):
            body = {"type": task["type"], "input": {**inputs, **looped(kind.inputs, inputs)}}
            items = draw(fed(Field("items", "list"), source))
            task = {"ref": f"t{index}", "type": "Flow.ForEach", "input": {"items": items, "task": body}}
            kind = TYPES["flow.foreach"]
        if draw(st.booleans()):
            task["condition"] = draw(conditions(source))
        made = [*made, *((f"refs.t{index}.output.{output.name}", output) for output in kind.outputs)]
        tasks.append(task)
    fields = [{"name": kind, "type": kind, "required": False} for kind in TYPE_NAMES]
    outputs = [
        {"name": f"o{n}", "type": field.type, "value": draw(fed(field, made))} for n, (_, field) in enumerate(made[:3])
    ]
    execution = draw(st.sampled_from(["sequential", "parallel"]))
    return {"name": "x", "execution": execution, "input": fields, "tasks": tasks, "output": outputs}


def looped(fields: tuple[Field, ...], inputs: dict[str, Any]) -> dict[str, Any]:
    texts_only = [one.name for one in fields if one.type == "text" and not one.choices and one.name in inputs]
    return dict.fromkeys(texts_only, "{{item.name}}")


def fed(field: Field, made: list[tuple[str, Field]]) -> st.SearchStrategy[Any]:
    whole = [
        f"{{{{{path}}}}}" for path, output in made if "any" in (field.type, output.type) or output.type == field.type
    ]
    literal = st.sampled_from(field.choices) if field.choices else LITERALS[field.type]
    return st.sampled_from([*whole, f"{{{{input.{field.type}}}}}", "{{input.any}}"]) | literal


def conditions(made: list[tuple[str, Field]]) -> st.SearchStrategy[Any]:
    value = fed(Field("x", "any"), made)
    compared = st.fixed_dictionaries(
        {"left": value, "op": st.sampled_from(["eq", "ne", "in", "contains"]), "right": value}
    ) | st.fixed_dictionaries({"left": st.just("{{input.any.deep}}"), "op": st.just("exists")})
    return st.recursive(
        st.booleans() | fed(Field("x", "boolean"), made) | compared,
        lambda inner: (
            st.fixed_dictionaries({"all": st.lists(inner, min_size=1, max_size=3)})
            | st.fixed_dictionaries({"any": st.lists(inner, min_size=1, max_size=3)})
            | st.fixed_dictionaries({"not": inner})
        ),
        max_leaves=4,
    )


@given(good_flows())
@FEW
def test_a_good_flow_is_accepted_and_the_same_in_both_dialects_and_when_kept(body: dict[str, Any]) -> None:
    dialect, flow = accept(body, TYPES)
    assert dialect == "refs"
    other = dialects.write(flow, "tasks")
    assert dialects.read(other) == ("tasks", flow)
    assert accept(other, TYPES) == ("tasks", flow)
    assert dialects.read(dialects.write(flow, "refs")) == ("refs", flow)
    kept = json.loads(json.dumps(flow.model_dump(mode="json", exclude_defaults=True)))
    assert Flow.model_validate(kept) == flow
    assert check(flow, TYPES) == []


@given(good_flows(), st.dictionaries(st.sampled_from(TYPE_NAMES), anything), st.lists(anything, max_size=5), anything)
@FEW
def test_an_accepted_flow_has_an_order_and_meets_any_values(
    body: dict[str, Any], inputs: dict[str, Any], results: list[Any], item: Any
) -> None:
    _, flow = accept(body, TYPES)
    needed = needs(flow)
    done: set[str] = set()
    for name in order(needed):
        assert needed[name] <= done
        done.add(name)
    assert done == {task.name for task in flow.tasks}

    refs = {task.name: {"output": result} for task, result in zip(flow.tasks, results, strict=False)}
    for values in (
        {"input": inputs, "refs": refs, "item": item, "index": 0},
        {"input": inputs, "refs": {task.name: {"output": {}} for task in flow.tasks}},
        {"input": item, "refs": item},
        {},
    ):
        meet(flow, values)


def meet(flow: Flow, values: dict[str, Any]) -> None:
    """Everything that an execution does with values; nothing but the errors of its own may come out."""
    for task in flow.tasks:
        body = loop_body(task)
        for value in (task.inputs, None if body is None else body.inputs):
            result = outcome(lambda value=value: compile_value(value).resolve(values))
            assert isinstance(result, ReferenceFault) or type(result) is type(value)
        held = outcome(evaluate, task.condition, values)
        assert type(held) in (bool, ConditionFault)
    for output in flow.outputs:
        outcome(lambda value=output.value: compile_value(value).resolve({**values, "output": {}}))


@given(anything, anything)
@FEW
def test_any_condition_with_any_values_is_true_or_false_or_a_fault(condition: Any, value: Any) -> None:
    held = outcome(evaluate, condition, {"input": {"a": value, "b": condition}, "refs": value})
    assert type(held) in (bool, ConditionFault)


@given(st.lists(st.sampled_from([*"{}\\ a.", "{{item}}"]), max_size=12).map("".join) | texts)
@example("{\\{{{{item}}")
@example("\\\\{\\{{\\{{{{item}}")
@FEW
def test_what_is_read_is_written_and_read_as_the_same(text: str) -> None:
    parts = outcome(parse, text)
    if isinstance(parts, BadReference):
        return
    assert parse(spell(parts)) == parts
    assert parse(spell(parts, TASKS), TASKS) == parts
    assert spell(parse(spell(parts, TASKS), TASKS), CANONICAL) == spell(parts)


@given(st.text(alphabet="ab }\n", max_size=9), texts)
@FEW
def test_what_has_been_filled_in_is_not_read_again(before: str, value: str) -> None:
    template = compile_value([before + "{{input.x}}"])
    assert template.resolve({"input": {"x": value}}) == [before + value]

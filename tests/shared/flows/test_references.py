"""Texts with references: how they are read and written, what they become, and what can never be got out of them."""

import json
from typing import Any

import pytest

from shared.flows.faults import Faults, FlowFaults
from shared.flows.references import (
    CANONICAL,
    MAX_RENDERED,
    BadReference,
    Notation,
    Reference,
    ReferenceFault,
    compile_value,
    parse,
    spell,
    translate,
)

TASKS = Notation("inputs", "tasks", "outputs")
VALUES: dict[str, Any] = {
    "input": {"url": "https://a.test", "n": 3, "half": 0.5, "yes": True, "none": None, "odd-name": "o", "braces": "{{input.n}}"},
    "refs": {
        "chat": {"output": {"usage": {"total_tokens": 7}, "items": [{"name": "first"}, {"name": "second"}], "text": "hi"}},
        "skipped": {"output": {}},
    },
    "item": {"page": 2, "tags": ["x"]},
    "index": 4,
}  # fmt: skip


def resolved(value: Any) -> Any:
    return compile_value(value).resolve(VALUES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{input.n}}", 3),
        ("{{ input.n }}", 3),
        ("{{input.yes}}", True),
        ("{{input.none}}", None),
        ("{{input.odd-name}}", "o"),
        ("{{refs.chat.output.usage}}", {"total_tokens": 7}),
        ("{{refs.chat.output.usage.total_tokens}}", 7),
        ("{{refs.chat.output.items.1.name}}", "second"),
        ("{{item}}", {"page": 2, "tags": ["x"]}),
        ("{{item.tags.0}}", "x"),
        ("{{index}}", 4),
        ("{{input}}", VALUES["input"]),
        ("{{refs.skipped.output}}", {}),
        ("n={{input.n}} {{input.half}} {{input.yes}}", "n=3 0.5 true"),
        (" {{input.n}}", " 3"),
        ("{{input.n}}{{input.n}}", "33"),
        ("<{{input.none}}>", "<>"),
        ("u: {{refs.chat.output.usage}}", 'u: {"total_tokens": 7}'),
        ("tags {{item.tags}}", 'tags ["x"]'),
        ("no reference }} here", "no reference }} here"),
        ("\\{{input.n}}", "{{input.n}}"),
        ("\\\\{{input.n}}", "\\3"),
        ("\\\\\\{{input.n}}", "\\{{input.n}}"),
        ("C:\\temp\\{{input.n}}", "C:\\temp{{input.n}}"),
        ("a\\b {{input.n}}\\", "a\\b 3\\"),
        ("\\{{\\{{{{input.n}}", "{{{{3"),
        ('{"a":{{input.n}}}', '{"a":3}'),
    ],
)
def test_a_text_becomes(text: str, value: Any) -> None:
    assert resolved(text) == value
    assert type(resolved(text)) is type(value)


def test_what_comes_out_is_never_looked_at_again() -> None:
    assert resolved("{{input.braces}}") == "{{input.n}}"
    assert resolved("<{{input.braces}}>") == "<{{input.n}}>"


def test_values_are_filled_in_at_any_depth_into_new_containers() -> None:
    template = compile_value({"a": [{"b": "{{input.n}}"}, "{{input.url}}/x"], "c": [1]})
    first, second = template.resolve(VALUES), template.resolve(VALUES)
    assert first == {"a": [{"b": 3}, "https://a.test/x"], "c": [1]}
    first["c"].append(2)
    assert second["c"] == [1]
    assert template.resolve(VALUES)["c"] == [1]


def test_references_are_known_with_their_places() -> None:
    template = compile_value({"a": ["{{input.n}}", "x {{refs.chat.output.text}}"]}, "tasks[0].input")
    assert template.references == (Reference("input", None, ("n",)), Reference("refs", "chat", ("text",)))
    assert [(use.path, use.whole) for use in template.uses] == [
        ("tasks[0].input.a[0]", True),
        ("tasks[0].input.a[1]", False),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{{refs.skipped.output.text}}",
        "{{refs.skipped.output.usage.total_tokens}}",
        "{{refs.chat.output.not_given}}",
        "{{refs.chat.output.not_given.below}}",
        "{{input.none.below.0}}",
    ],
)
def test_what_a_task_has_not_given_is_null_and_so_is_all_below_it(text: str) -> None:
    assert resolved(text) is None
    assert resolved(f"<{text}>") == "<>"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{{input.nothing}}", "has no member `nothing`"),
        ("{{refs.nobody.output.x}}", "not known here"),
        ("{{refs.chat.output.usage.cost}}", "has no member `cost`"),
        ("{{refs.chat.output.items.2}}", "a list of 2 items"),
        ("{{refs.chat.output.items.first}}", "has no item first"),
        ("{{refs.chat.output.items.-1}}", "has no item -1"),
        ("{{refs.chat.output.items.99999999999999}}", "has no item"),
        ("{{refs.chat.output.text.0}}", "of type text"),
        ("{{refs.chat.output.text.__class__}}", "of type text"),
        ("{{item.__class__.__mro__}}", "has no member `__class__`"),
        ("{{input.n.real}}", "of type number"),
        ("{{output.x}}", "not known here"),
    ],
)
def test_what_is_not_there_is_a_reference_fault(text: str, part: str) -> None:
    with pytest.raises(ReferenceFault) as fault:
        compile_value({"a": [text]}, "tasks[2].input").resolve(VALUES)
    assert fault.value.path == "tasks[2].input.a[0]"
    assert part in fault.value.message
    assert part in str(fault.value)


class Attributes:
    secret = "s"


class Sneaky(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        raise RuntimeError("this runs code")


@pytest.mark.parametrize(
    "held", [Attributes(), Sneaky(), (1, 2), {1, 2}, b"x", Attributes], ids=lambda held: str(type(held))
)
@pytest.mark.parametrize(
    "text", ["{{input.x}}", "{{input.x.secret}}", "{{input.x.0}}", "<{{input.x}}>", "<{{input.y}}>"]
)
def test_nothing_but_plain_json_is_walked_or_given(held: Any, text: str) -> None:
    with pytest.raises(ReferenceFault):
        compile_value(text).resolve({"input": {"x": held, "y": [held]}})


@pytest.mark.parametrize(
    "values",
    [{}, {"input": None}, {"input": 3}, {"input": []}, {"input": Attributes()}, {"refs": {"a": 1}}, {"refs": [1]}],
    ids=("nothing", "null", "number", "list", "object", "no output", "refs as a list"),
)
def test_values_of_another_form_are_reference_faults_or_null(values: Any) -> None:
    values.pop("item", None)
    for text in ("{{input.x}}", "{{refs.a.output.x}}", "{{item}}", "<{{index}}>"):
        try:
            assert compile_value(text).resolve(values) in (None, "<>")
        except ReferenceFault:
            pass


def test_rendered_texts_are_bounded_in_all() -> None:
    half = "x" * (MAX_RENDERED // 2)
    values = {"input": {"half": half}}
    assert compile_value(["{{input.half}}<"] * 1).resolve(values) == [half + "<"]
    with pytest.raises(ReferenceFault, match="larger than 1 MiB"):
        compile_value(["{{input.half}}<"] * 3).resolve(values)
    assert compile_value(["{{input.half}}"] * 1000).resolve(values)[999] is half  # a whole one costs nothing


def test_rendering_counts_bytes() -> None:
    with pytest.raises(ReferenceFault, match="larger than 1 MiB"):
        compile_value("<{{input.x}}").resolve({"input": {"x": "€" * (MAX_RENDERED // 2)}})


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def shared_tree(levels: int) -> Any:
    value: Any = [1]
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "held",
    [deep(5000), shared_tree(40), float("nan"), float("inf"), 10**5000, {"a": float("nan")}, [10**5000], {1: 2}],
    ids=["deep", "wide", "nan", "inf", "huge", "nan within", "huge within", "number as a name"],
)
def test_what_cannot_be_rendered_is_a_reference_fault(held: Any) -> None:
    with pytest.raises(ReferenceFault, match="cannot be rendered"):
        compile_value("<{{input.x}}>").resolve({"input": {"x": held}})


def test_a_circle_of_objects_is_a_reference_fault() -> None:
    circle: dict[str, Any] = {}
    circle["again"] = circle
    with pytest.raises(ReferenceFault, match="deeper"):
        compile_value("<{{input.x}}>").resolve({"input": {"x": circle}})


@pytest.mark.parametrize(
    "text",
    ["{{", "{{}}", "{{ }}", "{{input..x}}", "{{.input}}", "{{input.x", "{{ input.x }", "{{refs}}", "{{refs.a}}", "{{refs.a.x}}",
     "{{refs.a.outputs.x}}", "{{inputs.x}}", "{{index.x}}", "{{output}}", "{{x}}", "{{input.x y}}", "{{input.é}}",
     "{{{input.x}}", "{{{{input.x}}}}", "{{input.x|json}}", "{{1+1}}", "{{input\n.x}}", "{{" + "a." * 30 + "a}}"],
)  # fmt: skip
def test_braces_that_are_no_reference_are_refused_when_they_are_parsed(text: str) -> None:
    with pytest.raises(BadReference):
        parse(text)
    with pytest.raises(FlowFaults) as refused:
        compile_value({"a": text, "b": text}, "at")
    assert [(one.path, one.code) for one in refused.value.faults] == [
        ("at.a", "bad_reference"),
        ("at.b", "bad_reference"),
    ]


def test_what_is_not_json_is_refused_before_it_is_walked() -> None:
    for value in (deep(1000), {1: 2}, (1,), float("nan")):
        with pytest.raises(FlowFaults):
            compile_value(value)


def test_a_text_is_written_in_another_notation_and_back() -> None:
    text = (
        "a {{input.x}} \\{{input.x}} {{refs.t.output.items.0.name}} {{item.a}} {{index}} {{output.z}} \\\\{{input.y}}"
    )
    other = spell(parse(text), TASKS)
    assert other == (
        "a {{inputs.x}} \\{{input.x}} {{tasks.t.outputs.items.0.name}} {{item.a}} {{index}} {{outputs.z}} \\\\{{inputs.y}}"
    )
    assert spell(parse(other, TASKS), CANONICAL) == text


@pytest.mark.parametrize(
    "text",
    ["{{" * 400_000, "\\" * 900_000, "\\{{" * 300_000, "{{input.a}}" * 90_000, "{" * 900_000, "{{ " * 300_000 + "}}",
     "{{input.a" * 100_000, "\\" * 400_000 + "{{" + "\\" * 400_000, "}}" * 400_000, "\\\\{{input.a}}" * 60_000],
    ids=["open", "backslashes", "escapes", "references", "single", "spaces", "unclosed", "one", "closed", "pairs"],
)  # fmt: skip
@pytest.mark.timeout(30)  # what is quadratic takes hours
def test_hostile_texts_are_read_in_one_pass(text: str) -> None:
    found = Faults()
    written = translate(text, CANONICAL, TASKS, "at", found)
    if found.found:
        assert [len(one.message) < 500 for one in found.found] == [True]
        assert written is text
    else:
        assert translate(written, TASKS, CANONICAL, "at", found) == text


def test_rendered_json_reads_back() -> None:
    value = {"a": [1, 2.5, None, True, "é\n"], "b": {}}
    text = compile_value("x{{input.v}}").resolve({"input": {"v": value}})
    assert json.loads(text[1:]) == value

"""Both ways of writing a flow: the examples of the two contract pages as they stand there, and conversion between them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shared.flows import dialects
from shared.flows.definition import Flow, loop_body
from shared.flows.dialects import refs, tasks
from shared.flows.dialects.words import DialectName
from shared.flows.faults import FlowFaults
from shared.flows.validation import accept, check_inputs
from stepway.tasks import TaskType
from tests.shared.flows.kinds import BASE, TASKS_BASE, TYPES, edited

PAGES = Path(__file__).parents[2] / "contract" / "seeds"


def examples(page: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in re.findall(r"```json\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)]


def definition(page: str) -> dict[str, Any]:
    [found] = [one for one in examples(page) if "tasks" in one and "status" not in one]
    return found


SUMMARY, SPEECH = definition("data-flow-workflows.md"), definition("data-flow-quick-start.md")
OTHER: dict[DialectName, DialectName] = {"refs": "tasks", "tasks": "refs"}

FULL = edited(
    {
        "description": "Everything there is.",
        "execution": "parallel",
        "input.0.description": "Where to look",
        "input.0.default": "https://{{not.a.reference}}.test",
        "tasks.0.retry": {"attempts": 3, "delay": 5, "jitter": 0.1},
        "tasks.0.timeout": 20,
        "tasks.0.input.headers": {"x": ["\\{{as it is}} {{input.most}}"], "y": None},
        "tasks.1.condition": {
            "all": [{"left": "{{refs.download.output.status}}", "op": "eq", "right": 200}, {"not": False}]
        },
        "tasks.1.on_error": "default",
        "tasks.1.fallback": {"text": "none at {{input.url}}"},
        "tasks.2.depends_on": ["download"],
        "tasks.2.output": [{"name": "empty", "type": "boolean"}],
        "tasks.2.on_error": "continue",
        "tasks.2.description": "How long it is",
        "tasks.3.type": "Flow.ForEach",
        "tasks.3.input.task.type": "Text.Truncate",
        "tasks.3.input.task.input.text": "{{item}} {{index}} {{input.url}} {{refs.size.output.characters}}",
        "tasks.3.input.task.retry": {"attempts": 2},
        "tasks.3.input.task.condition": "{{item.ok}}",
        "tasks.3.input.task.timeout": 3.5,
        "output.1": {
            "name": "again",
            "type": "String",
            "value": "{{output.text}} / {{input}}",
            "description": "From another one",
        },
    }
)


@pytest.mark.parametrize(
    ("body", "dialect"),
    [(SUMMARY, "refs"), (SPEECH, "tasks"), (BASE, "refs"), (FULL, "refs")],
    ids=["summary", "speech", "base", "full"],
)
def test_a_body_is_read_and_written_back_as_it_was(body: dict[str, Any], dialect: DialectName) -> None:
    told, flow = dialects.read(body)
    assert told == dialect
    assert dialects.write(flow, dialect) == body
    assert accept(body, TYPES) == (dialect, flow)


@pytest.mark.parametrize(
    "body", [SUMMARY, SPEECH, BASE, TASKS_BASE, FULL], ids=["summary", "speech", "base", "list", "full"]
)
def test_a_flow_written_in_the_other_dialect_is_the_same_flow(body: dict[str, Any]) -> None:
    dialect, flow = dialects.read(body)
    other = dialects.write(flow, OTHER[dialect])
    assert dialects.read(other) == (OTHER[dialect], flow)
    assert accept(other, TYPES)[1] == flow
    json.dumps(other, allow_nan=False)


@pytest.mark.parametrize("body", [SUMMARY, SPEECH, FULL], ids=["summary", "speech", "full"])
def test_a_flow_is_kept_as_json(body: dict[str, Any]) -> None:
    _, flow = dialects.read(body)
    kept = flow.model_dump(mode="json", exclude_defaults=True)
    assert Flow.model_validate(json.loads(json.dumps(kept))) == flow


def test_the_summary_in_the_other_words() -> None:
    body = tasks.write(refs.read(SUMMARY))
    assert body["title"] == SUMMARY["name"]
    assert body["inputs"] == SUMMARY["input"]
    assert body["tasks"][1] == {
        "name": "extract_text",
        "type": "Web.ExtractText",
        "inputs": {"html_content": "{{tasks.download_webpage.outputs.html_content}}"},
    }
    assert body["outputs"][0]["value"] == "{{tasks.summarize_text.outputs.summary}}"


def test_the_inside_of_a_flow_is_canonical() -> None:
    flow = tasks.read(tasks.write(refs.read(SUMMARY)))
    assert [task.type for task in flow.tasks] == ["web.download", "web.extract_text", "openai.text.summarize"]
    assert flow.tasks[1].inputs == {"html_content": "{{refs.download_webpage.output.html_content}}"}
    assert flow.inputs[0].type == "text"


def test_inputs_of_the_pages_are_taken() -> None:
    _, flow = dialects.read(SUMMARY)
    for page, word in (("data-flow-workflows.md", "input"), ("data-flow-quick-start.md", "inputs")):
        given = [one[word] for one in examples(page) if word in one and "tasks" not in one]
        assert given
        assert all(check_inputs(flow, one) == {"webpage_url": "https://example.com"} for one in given)


def test_inputs_as_a_list_are_inputs_as_an_object() -> None:
    listed = edited(
        {"tasks.0.inputs": [{"name": "text", "value": "{{inputs.text}}"}, {"name": "voice", "value": "alloy"}]}, SPEECH
    )
    assert dialects.read(listed) == dialects.read(SPEECH)


def test_spaces_in_references_do_not_matter() -> None:
    assert dialects.read(edited({"tasks.0.input.url": "{{ input.url }}"})) == dialects.read(BASE)


def test_the_task_of_a_loop_is_a_task() -> None:
    for body in (FULL, dialects.write(dialects.read(FULL)[1], "tasks")):
        flow = dialects.read(body)[1]
        inner = loop_body(flow.tasks[3])
        assert inner is not None
        assert (inner.name, inner.type, inner.spelled, inner.timeout) == ("loop", "text.truncate", "Text.Truncate", 3.5)
        assert inner.inputs["text"] == "{{item}} {{index}} {{input.url}} {{refs.size.output.characters}}"
        assert inner.retry is not None
        assert inner.retry.attempts == 2
        assert inner.condition == "{{item.ok}}"


def test_a_third_party_type_gets_its_own_name_and_keeps_its_spelling() -> None:
    types = {**TYPES, "github.issue": TaskType("github.issue", "", "", (), ())}
    loop = {"items": [], "task": {"type": "GitHub.Issue"}}
    body = {
        "name": "x",
        "tasks": [{"ref": "a", "type": "GitHub.Issue"}, {"ref": "b", "type": "flow.foreach", "input": loop}],
    }
    _, flow = accept(body, types)
    inner = loop_body(flow.tasks[1])
    assert inner is not None
    for task in (flow.tasks[0], inner):
        assert (task.type, task.spelled) == ("github.issue", "GitHub.Issue")
    assert dialects.write(flow, "refs") == body
    assert accept(dialects.write(flow, "tasks"), types) == ("tasks", flow)


@pytest.mark.parametrize("read", [refs.read, tasks.read])
def test_a_dialect_alone_refuses_the_other_one(read: Any) -> None:
    with pytest.raises(FlowFaults):
        read(SUMMARY if read is tasks.read else SPEECH)


@pytest.mark.parametrize("read", [refs.read, tasks.read])
def test_a_dialect_alone_takes_no_body_of_any_depth(read: Any) -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"not": deep}
    body = dialects.write(dialects.read(BASE)[1], "refs" if read is refs.read else "tasks")
    body["tasks"][0]["condition"] = deep
    with pytest.raises(FlowFaults, match="nested deeper"):
        read(body)

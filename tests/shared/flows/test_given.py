"""Values that are given: inputs of executions and of tasks, and the outputs of a flow."""

from typing import Any

import pytest

from shared.flows import dialects
from shared.flows.faults import FlowFaults
from shared.flows.given import check_inputs, flow_outputs, is_kept, task_inputs
from tests.shared.flows.kinds import BASE, TYPES, edited

FILE = {"artifact_id": "7f", "name": "a.wav", "media_type": "audio/wav", "size": 3, "sha256": "00"}


def told(refused: pytest.ExceptionInfo[FlowFaults]) -> list[tuple[str, str]]:
    return [(one.path, one.code) for one in refused.value.faults]


def test_defaults_are_filled_in_and_the_rest_is_null() -> None:
    _, flow = dialects.read(BASE)
    assert check_inputs(flow, {"url": "x"}) == {"url": "x", "most": 5, "sound": None, "settings": None}
    assert check_inputs(flow, {"url": "", "most": 0.5, "sound": FILE, "settings": {}}) == {
        "url": "", "most": 0.5, "sound": FILE, "settings": {},
    }  # fmt: skip
    assert check_inputs(flow, {"url": "x", "most": None})["most"] == 5


def test_a_flow_without_inputs_needs_none() -> None:
    _, flow = dialects.read({"name": "x", "tasks": [{"ref": "a", "type": "text.size"}]})
    assert check_inputs(flow, None) == check_inputs(flow, {}) == {}


def test_references_in_what_is_given_are_just_text() -> None:
    _, flow = dialects.read(BASE)
    assert check_inputs(flow, {"url": "{{input.url}} {{"})["url"] == "{{input.url}} {{"


def test_a_task_is_given_what_was_resolved_and_defaults() -> None:
    assert task_inputs(TYPES["openai.audio.tts"], {"text": "x"}) == {"text": "x", "voice": "alloy"}
    assert task_inputs(TYPES["openai.audio.tts"], {"text": "x", "voice": None}) == {"text": "x", "voice": "alloy"}
    assert task_inputs(TYPES["web.extract_text"], {"html": None, "html_content": "x"}) == {
        "html": None,
        "html_content": "x",
    }


@pytest.mark.parametrize(
    ("kind", "given", "fault"),
    [
        ("openai.audio.tts", {"text": None}, ("tasks[1].input.text", "missing")),
        ("openai.audio.tts", {"text": 3}, ("tasks[1].input.text", "wrong_type")),
        ("openai.audio.tts", {"text": "x", "voice": "bass"}, ("tasks[1].input.voice", "not_allowed")),
        ("openai.audio.tts", None, ("tasks[1].input.text", "missing")),
        ("web.extract_text", {}, ("tasks[1].input", "one_of")),
        ("web.extract_text", {"html": "a", "html_content": "b"}, ("tasks[1].input", "one_of")),
        ("web.extract_text", {"html": "a", "htm": "b"}, ("tasks[1].input.htm", "unknown_input")),
        ("openai.audio.transcription", {"file": "x"}, ("tasks[1].input.file", "wrong_type")),
    ],
    ids=str,
)
def test_a_task_is_not_run_with_anything_else(kind: str, given: Any, fault: tuple[str, str]) -> None:
    with pytest.raises(FlowFaults) as refused:
        task_inputs(TYPES[kind], given, "tasks[1].input")
    assert told(refused) == [fault]


VALUES: dict[str, Any] = {
    "input": {"url": "u"},
    "refs": {
        "extract": {"output": {"text": "t"}},
        "size": {"output": {"characters": 3}},
        "loop": {"output": {"results": [5]}},
    },
}


def test_outputs_are_resolved_in_order_and_may_use_those_before() -> None:
    body = edited({"output.1": {"name": "both", "type": "string", "value": "{{output.text}}/{{input.url}}"}})
    assert flow_outputs(dialects.read(body)[1], VALUES) == {"text": "t", "both": "t/u"}


def test_the_output_of_a_skipped_task_is_null() -> None:
    values: dict[str, Any] = {"input": {}, "refs": {"extract": {"output": {}}}}
    assert flow_outputs(dialects.read(BASE)[1], values) == {"text": None}


def test_outputs_of_another_type_or_that_are_not_there_are_faults() -> None:
    body = edited(
        {
            "output.0.value": "{{refs.loop.output.results.0}}",
            "output.1": {"name": "x", "type": "any", "value": "{{refs.loop.output.results.1}}"},
        }
    )
    with pytest.raises(FlowFaults) as refused:
        flow_outputs(dialects.read(body)[1], VALUES, "tasks")
    assert told(refused) == [("outputs[0].value", "wrong_type"), ("outputs[1].value", "unknown_reference")]


def test_a_large_value_that_is_kept_may_be_an_output() -> None:
    kept = {**FILE, "spilled": True}
    assert is_kept(kept)
    assert not is_kept(FILE)
    assert not is_kept({"spilled": True})
    assert flow_outputs(dialects.read(BASE)[1], {"refs": {"extract": {"output": {"text": kept}}}}) == {"text": kept}
    with pytest.raises(FlowFaults):
        flow_outputs(dialects.read(BASE)[1], {"refs": {"extract": {"output": {"text": FILE}}}})


def test_nobody_may_give_a_kept_value_for_a_text() -> None:
    with pytest.raises(FlowFaults):
        check_inputs(dialects.read(BASE)[1], {"url": {**FILE, "spilled": True}})


def test_a_task_takes_values_that_are_larger_than_a_body() -> None:
    page = "x" * (2 << 20)
    assert task_inputs(TYPES["text.size"], {"text": page}) == {"text": page}

"""Values that are given: the inputs of executions."""

import pytest

from shared.flows import dialects
from shared.flows.faults import FlowFaults
from shared.flows.given import check_inputs
from tests.shared.flows.kinds import BASE

FILE = {"artifact_id": "7f", "name": "a.wav", "media_type": "audio/wav", "size": 3, "sha256": "00"}


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


def test_nobody_may_give_a_kept_value_for_a_text() -> None:
    with pytest.raises(FlowFaults):
        check_inputs(dialects.read(BASE)[1], {"url": {**FILE, "spilled": True}})

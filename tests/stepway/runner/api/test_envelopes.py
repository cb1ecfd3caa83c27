import math
import sys
from typing import Any

import pytest
from workflows.events import Event, SerializableOptionalEvent, SerializableOptionalException, StartEvent, StopEvent

from stepway.runner.api.envelopes import (
    InvalidEvent,
    Registry,
    Unserialisable,
    envelope,
    envelope_json,
    is_terminal,
    read,
    types_of,
    without_qualified_name,
)
from tests.stepway.runner.api.flows import Answer, Summed, Sums


class Anything(Event):
    value: Any = None


class Nested(StartEvent):
    inner: SerializableOptionalEvent = None
    error: SerializableOptionalException = None


HERE = __name__
KNOWN = Registry((Sums, Summed, Answer, Nested, StopEvent))


def test_an_envelope_has_the_events_fields_and_its_classes() -> None:
    assert envelope(Summed(total=3, note="n")) == {
        "value": {"total": 3, "note": "n"},
        "qualified_name": "tests.stepway.runner.api.flows.Summed",
        "type": "Summed",
        "types": ["StopEvent"],
    }


def test_a_plain_stop_event_has_its_result_and_no_parents() -> None:
    made = envelope(StopEvent(result=12))
    assert made["value"] == {"result": 12}
    assert made["types"] is None


def test_fields_that_a_class_does_not_declare_are_kept() -> None:
    assert envelope(StartEvent(name="A"))["value"] == {"_data": {"name": "A"}}


def test_numbers_without_a_json_form_become_null() -> None:
    assert envelope(StopEvent(result=[math.nan, math.inf]))["value"] == {"result": [None, None]}


def test_parents_end_at_event() -> None:
    assert types_of(Answer) == ["HumanResponseEvent"]
    assert types_of(Anything) is None


class Secretive:
    def __repr__(self) -> str:
        return "hunter2"


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (Anything(value=Secretive()), "Anything.value"),
        (StopEvent(result={"deep": Secretive()}), "StopEvent.result"),
        (Anything(more=Secretive()), "Anything.more"),
        (Anything(value="\ud800"), "Anything.value"),
        (Anything(value=b"\xff"), "Anything.value"),
    ],
    ids=["declared", "result", "undeclared", "surrogate", "bytes"],
)
def test_what_cannot_be_written_is_named_without_its_value(event: Event, field: str) -> None:
    with pytest.raises(Unserialisable) as told:
        envelope_json(event)
    assert str(told.value).startswith(field)
    assert "hunter2" not in str(told.value)


def test_a_cycle_is_told_of() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(Unserialisable, match=r"StopEvent\.result"):
        envelope_json(StopEvent(result=ring))


@pytest.mark.parametrize(
    "data",
    [
        {"numbers": [1]},
        '{"numbers": [1]}',
        {"type": "Sums", "value": {"numbers": [1]}},
        {"qualified_name": "tests.stepway.runner.api.flows.Sums", "value": {"numbers": [1]}},
        {"qualified_name": "elsewhere.Sums", "type": "Sums", "data": {"numbers": [1]}},
        {"numbers": [1], "type": "not a class here, but a field"},
    ],
    ids=["fields", "text", "type", "qualified", "legacy", "field called type"],
)
def test_a_start_event_is_read_in_all_its_forms(data: Any) -> None:
    event = read(data, KNOWN, Sums)
    assert isinstance(event, Sums)
    assert event.numbers == [1]


def test_a_field_called_value_is_a_field() -> None:
    event = read({"value": 3}, Registry((Anything,)), Anything)
    assert isinstance(event, Anything)
    assert event.value == 3


def test_what_is_written_is_read_back() -> None:
    event = read(envelope_json(Summed(total=1, note="x")), KNOWN)
    assert event == Summed(total=1, note="x")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"type": "Sums", "value": {}}, "Sums: numbers: Field required"),
        ({"type": "Popen", "value": {}}, "Invalid event type: Popen"),
        ({"qualified_name": "subprocess.Popen", "value": {}}, "Invalid event type: subprocess.Popen"),
        ({"type": ["Sums"], "value": {}}, "Invalid event type"),
        ({"type": "Sums"}, "without a value"),
        ({"type": "Sums", "value": [1]}, "not a JSON object"),
        ({"type": "Sums", "value": None}, "not a JSON object"),
        ({"type": "Sums", "value": {"numbers": [1], "_data": 5, "x": 1}}, "_data"),
        ({"type": "Sums", "value": {"numbers": [1], "self": 5}}, "cannot be made of this value"),
        ({"type": "StopEvent", "value": {"result": 1, "_result": 2}}, "cannot be made of this value"),
        ({"numbers": [1]}, "needs a type"),
        ([], "is a JSON object"),
        (5, "is a JSON object"),
        ("[", "not JSON"),
        ("NaN", "not JSON"),
    ],
    ids=str,
)
def test_what_is_no_event_is_refused(data: Any, said: str) -> None:
    with pytest.raises(InvalidEvent, match=said):
        read(data, KNOWN)


def test_faults_of_a_value_are_few_and_do_not_repeat_it() -> None:
    with pytest.raises(InvalidEvent) as told:
        read({"numbers": ["hunter2"] * 1000}, KNOWN, Sums)
    assert "hunter2" not in str(told.value)
    assert "995 more" in str(told.value)


@pytest.mark.parametrize(
    "value",
    [
        {"inner": {"__is_pydantic": True, "qualified_name": "antigravity.Thing", "value": {}}},
        {"inner": {"__is_component": True, "qualified_name": "antigravity.Thing", "value": {}}},
        {"inner": {"__is_pydantic": True, "qualified_name": ["antigravity"], "value": {}}},
    ],
    ids=["pydantic", "component", "list"],
)
def test_a_nested_value_does_not_import(value: Any) -> None:
    with pytest.raises(InvalidEvent):
        read(value, KNOWN, Nested)
    assert "antigravity" not in sys.modules


def test_a_nested_exception_does_not_import() -> None:
    event = read({"error": {"exception_type": "antigravity.Error", "exception_message": "m"}}, KNOWN, Nested)
    assert isinstance(event, Nested)
    assert str(event.error) == "m"
    assert "antigravity" not in sys.modules


def test_a_nested_event_of_the_registry_is_read() -> None:
    inner = {
        "__is_pydantic": True,
        "qualified_name": "tests.stepway.runner.api.flows.Answer",
        "value": {"response": "r"},
    }
    event = read({"inner": inner}, KNOWN, Nested)
    assert isinstance(event, Nested)
    assert event.inner == Answer(response="r")


def test_qualified_names_can_be_left_out() -> None:
    assert '"qualified_name":null' in without_qualified_name(envelope_json(Answer(response=',"qualified_name":"x"')))


@pytest.mark.parametrize(
    ("event", "terminal"),
    [
        (StopEvent(), True),
        (Summed(total=1, note=""), True),
        (Answer(response='"StopEvent"'), False),
        (StartEvent(), False),
    ],
    ids=["stop", "subclass", "text", "start"],
)
def test_stop_events_are_terminal(event: Event, terminal: bool) -> None:
    assert is_terminal(envelope_json(event)) is terminal

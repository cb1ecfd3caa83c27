"""Lines of an event stream become events as the standard says."""

from stepway.sse import RawEvent, parse


def test_events_comments_and_many_lines_of_data() -> None:
    lines = [
        ":",
        "",
        "id: 1",
        "event: job",
        "data: {",
        "data: }",
        "",
        ": beat",
        "data:x",
        "",
        "id: 3",
        "",
        "data: late",
        "",
    ]
    assert list(parse(lines)) == [
        RawEvent("1", "job", "{\n}"),
        RawEvent("1", "message", "x"),
        RawEvent("3", "message", "late"),
    ]


def test_a_cut_event_is_none() -> None:
    assert list(parse(["id: 5", "data: half"], "4")) == []


def test_the_last_id_holds_until_another_comes() -> None:
    assert [event.id for event in parse(["data: a", "", "id: 9", "data: b", ""], "8")] == ["8", "9"]

"""Traces as a collector receives them, and what is done without one: nothing."""

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from shared import log
from shared.jobs.outcomes import Permanent
from shared.telemetry import traces
from shared.telemetry.metrics import registry
from shared.telemetry.work import step_span
from tests.otlp import PATIENCE, Receiver

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made
        traces.stop()


@pytest.fixture
def exported(receiver: Receiver) -> Receiver:
    traces.start(receiver.url, service="test")
    return receiver


def test_spans_under_each_other_form_one_trace(exported: Receiver) -> None:
    with traces.span("first", root=True, count=3), traces.span("second", job=uuid4()):
        inner = traces.traceparent()
    with traces.span("later", parent=inner):
        pass
    traces.stop()
    first, second, later = (exported.one(name) for name in ("first", "second", "later"))
    assert first.trace == second.trace == later.trace
    assert (first.parent, second.parent, later.parent) == ("", first.id, second.id)
    assert first.attributes == {"stepway.count": 3}


def test_a_failure_is_told_by_its_code_and_never_by_its_words(exported: Receiver) -> None:
    with pytest.raises(Permanent), traces.span("refused", root=True):
        raise Permanent("no_room", "marker-in-a-message")
    with pytest.raises(ValueError), traces.span("broken", root=True):
        raise ValueError("marker-in-a-value")
    traces.stop()
    assert exported.one("refused").attributes["error.type"] == "no_room"
    assert exported.one("broken").attributes["error.type"] == "internal"
    assert exported.one("broken").failed
    assert not [body for body in exported.raw if b"marker" in body]


def test_a_callers_wish_to_keep_a_trace_does_not_exceed_the_ratio(receiver: Receiver) -> None:
    traces.start(receiver.url, service="test", ratio=0.0)
    with traces.span("of a caller", parent=PARENT, remote=True, root=True):
        inner = traces.traceparent()
    assert inner is not None
    with traces.span("of its job", parent=inner):
        pass
    with traces.span("of a job that is kept", parent=PARENT):
        pass
    traces.stop()
    receiver.one("of a job that is kept")
    assert [span.name for span in receiver.spans] == ["of a job that is kept"]
    assert inner.split("-")[1] == TRACE
    assert inner.endswith("-00")


def test_a_collector_that_is_away_costs_spans_and_little_time() -> None:
    def lost() -> float:
        return registry().get_sample_value("stepway_spans_lost_total") or 0.0

    before = lost()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        traces.start(f"http://127.0.0.1:{silent.getsockname()[1]}", service="test")
        with traces.span("lost", root=True):
            pass
        began = time.monotonic()
        traces.stop(0.2)
        assert time.monotonic() - began < 30  # and not for as long as the collector is silent
        deadline = time.monotonic() + PATIENCE
        while lost() < before + 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_without_a_collector_no_thread_runs_and_ids_are_still_there() -> None:
    before = threading.active_count()
    traces.start(None, service="test")
    with traces.span("nowhere"):
        assert traces.traceparent() is None
    with traces.span("request", root=True):
        made = traces.traceparent()
        assert made is not None
        with traces.span("within"):
            assert traces.traceparent() == made
    with traces.span("job", parent=PARENT):
        assert traces.traceparent() == PARENT
    assert traces.traceparent() is None
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "value",
    ["", "x", "00-0-0-01", PARENT.upper(), PARENT + "-more", PARENT + "\n", "ff" + PARENT[2:], "00-" + "0" * 32 + PARENT[35:],
     PARENT.replace("b7ad6b7169203331", "0" * 16), "0" * 10_000],
)  # fmt: skip
def test_what_is_no_traceparent_begins_a_trace_of_its_own(value: str) -> None:
    assert traces.parse(value) is None
    with traces.span("request", parent=value, remote=True, root=True):
        made = traces.traceparent()
        assert made is not None
        assert TRACE not in made


def test_a_later_version_of_the_header_is_understood() -> None:
    assert traces.parse("01" + PARENT[2:] + "-what-comes-later") is not None


def test_lines_within_a_step_bear_all_ids() -> None:
    stream = io.StringIO()
    log.configure(json=True, stream=stream)
    job, workflow = uuid4(), uuid4()
    with step_span(job, "import_model", "download", 2, PARENT, workflow=workflow), traces.span("fetch files"):
        log.get_logger("test").info("within")
    log.get_logger("test").info("after")
    within, after = (json.loads(line) for line in stream.getvalue().splitlines())
    named = {key: within[key] for key in ("job", "kind", "step", "attempt", "workflow", "trace_id")}
    assert named == {
        "job": str(job), "kind": "import_model", "step": "download", "attempt": 2, "workflow": str(workflow),
        "trace_id": TRACE,
    }  # fmt: skip
    assert not named.keys() & after.keys()

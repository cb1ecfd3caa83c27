"""A job is one trace with the request that made it, whichever processes work on it, and its lines and series say so."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from shared.jobs.declare import Registry
from shared.telemetry import traces
from shared.telemetry.metrics import registry
from tests.otlp import Receiver
from tests.shared.jobs.engines import Harness, embedded
from tests.shared.jobs.test_faults import Workers, death, ledger, workers
from tests.shared.jobs.worker import JOBS, World, failing, journey

__all__ = ["ledger", "workers"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        traces.start(made.url, service="app")
        yield made
        traces.stop()


async def test_a_job_stays_in_its_trace_when_its_process_is_killed(
    ledger: Harness, workers: Workers, receiver: Receiver
) -> None:
    with traces.span("request", root=True):
        job = await ledger.submit(journey, 1)
    point = ["--at", "enter last#1".replace("last", f"{job}.last")]
    first = await workers.start(*point, "--otlp", receiver.url)
    # What a killed process has not sent is lost: here it waits for an event, and has the time to send.
    await asyncio.to_thread(receiver.until, lambda: len(receiver.named("step journey/flaky")) == 2)
    await ledger.until_step(job, "go", "running")
    await ledger.send(job, "go", 100)
    await death(first)
    await workers.start("--otlp", receiver.url)
    assert (await ledger.until(job))["state"] == "succeeded"

    def ends() -> bool:
        return any(span.attributes["stepway.outcome"] == "succeeded" for span in receiver.named("run journey"))

    await asyncio.to_thread(receiver.until, ends)
    request = await asyncio.to_thread(receiver.one, "request")
    submit = await asyncio.to_thread(receiver.one, "submit journey")
    assert submit.parent == request.id
    of_job = [span for span in receiver.spans if span.name.startswith(("run ", "step "))]
    assert {span.trace for span in of_job} == {request.trace}
    assert {span.parent for span in of_job} == {submit.id}
    assert {span.attributes["stepway.job"] for span in of_job} == {str(job)}
    steps = {(one.attributes["stepway.step"], one.attributes["stepway.attempt"]): one for one in of_job
             if one.name.startswith("step ")}  # fmt: skip
    assert {key: one.attributes["stepway.outcome"] for key, one in steps.items()} == {
        ("first", 1): "succeeded", ("left", 1): "succeeded", ("right", 1): "succeeded", ("flaky", 1): "flaky",
        ("flaky", 2): "succeeded", ("last", 2): "succeeded",
    }  # fmt: skip
    assert steps["first", 1].process != steps["last", 2].process

    lines = [json.loads(line) for line in (workers.folder / "log").read_text().splitlines()]
    told = [line for line in lines if line["event"] == "effect"]
    assert {line["step"] for line in told} == {"first", "left", "right", "flaky", "last"}
    assert {(line["job"], line["kind"], line["trace_id"]) for line in told} == {(str(job), "journey", request.trace)}


async def test_a_retry_and_what_is_undone_belong_to_the_same_trace(
    ledger: Harness, workers: Workers, receiver: Receiver
) -> None:
    with traces.span("request", root=True):
        job = await ledger.submit(failing, 1)
    await workers.start("--otlp", receiver.url)
    assert (await ledger.until(job))["state"] == "failed"
    await ledger.retry(job)
    await asyncio.to_thread(receiver.until, lambda: len(receiver.named("step failing/fail")) == 2)
    assert (await ledger.until(job))["state"] == "failed"
    await asyncio.to_thread(receiver.until, lambda: len(receiver.named("run failing")) == 2)
    assert {span.attributes["stepway.attempt"] for span in receiver.named("run failing")} == {1, 2}
    assert {span.attributes["stepway.outcome"] for span in receiver.named("step failing/fail")} == {"broken"}
    assert len(receiver.named("undo failing/add")) == 6
    assert len({span.trace for span in receiver.spans}) == 1


async def test_a_job_of_nobodys_request_is_a_trace_of_its_own(ledger: Harness) -> None:
    jobs = [await ledger.submit(journey, 1), await ledger.submit(journey, 1)]
    async with ledger.database.statement() as connection:
        rows = await connection.execute(
            text("SELECT traceparent FROM jobs.job WHERE id = ANY(:ids)"), {"ids": jobs}
        )  # fmt: skip
        kept = [row.traceparent for row in rows]
    assert len({value.split("-")[1] for value in kept if traces.parse(value)}) == 2


async def test_steps_and_ends_are_counted(workers: Workers, ledger: Harness) -> None:
    def value(name: str, **labels: str) -> float:
        return registry().get_sample_value(name, labels) or 0.0

    def all_counts() -> list[float]:
        return [
            value("stepway_step_seconds_count", kind="failing", step="add", outcome="succeeded"),
            value("stepway_step_seconds_count", kind="failing", step="fail", outcome="failed"),
            value("stepway_jobs_ended_total", kind="failing", state="failed"),
        ]

    before = all_counts()
    jobs = Registry()
    jobs.add(JOBS, World(workers.folder))
    async with embedded(ledger.database, jobs) as engine:
        job = await engine.submit(failing, 1)
        assert (await engine.until(job))["state"] == "failed"
    assert [now - was for now, was in zip(all_counts(), before, strict=True)] == [3, 1, 1]
    assert value("stepway_runs", kind="failing") == 0

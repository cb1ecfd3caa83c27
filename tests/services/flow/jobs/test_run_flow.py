"""Executions of flows on both engines, by real task types against a server of the test's; the app is in memory."""

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from services.flow.jobs import JOBS, run_flow
from services.flow.known import task_types
from services.flow.tools import FlowTools
from shared.contracts.flows import ALL_OUTPUTS, ChildEnd, FlowRun, child_event
from shared.db.engine import Database
from shared.flows.validation import accept
from shared.jobs.declare import Registry
from shared.jobs.run import PlannedStep
from shared.objects.opened import open_store
from shared.settings import Settings
from tests.services.flow.jobs.app import MemoryApp
from tests.serving import Fault, Server, send
from tests.shared.jobs.engines import ENGINES, Start, starter

Json = dict[str, Any]
ID = UUID("00000000-0000-4000-8000-000000000001")


class Echo(Server):
    """Answers with the last part of its path. `/hold/…` waits until the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()

    def answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        if "/hold/" in request.path:
            self.let.wait(60)
        body = b"x" * 300_000 if "/large" in request.path else request.path.rpartition("/")[2].encode()
        send(request, 200, body, {"Content-Type": "text/plain"})

    def counted(self) -> Counter[str]:
        return Counter(one.path for one in self.seen)

    def __exit__(self, *given: Any) -> None:
        self.let.set()
        super().__exit__(*given)


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


@pytest.fixture(params=ENGINES)
def start(request: pytest.FixtureRequest) -> Start:
    return starter(request.param, request.config)


@pytest.fixture
def app() -> MemoryApp:
    return MemoryApp()


@pytest.fixture
def registry(app: MemoryApp, tmp_path: Path, echo: Echo) -> Registry:
    settings = Settings(data_dir=tmp_path, trusted_hosts=[f"127.0.0.1:{echo.port}"])
    registry = Registry()
    registry.add(JOBS, FlowTools(app, app, open_store(settings, tmp_path / "objects"), settings))
    return registry


def run_of(tasks: list[Json], output: Json, inputs: Json | None = None, **more: Any) -> FlowRun:
    body = {
        "name": "a flow", "tasks": tasks,
        "input": [{"name": name, "type": "any"} for name in inputs or {}],
        "output": [{"name": name, "type": "any", "value": value} for name, value in output.items()], **more,
    }  # fmt: skip
    _, flow = accept(body, task_types())
    return FlowRun(flow_id=ID, version=1, flow=flow, inputs=inputs or {})


def ask(ref: str, url: str, **more: Any) -> Json:
    return {"ref": ref, "type": "http.request", "input": {"url": url}, **more}


def states(view: Json) -> dict[str, str]:
    return {step["key"]: step["state"] for step in view["steps"]}


async def test_tasks_in_order_with_what_others_gave(
    start: Start, database: Database, registry: Registry, echo: Echo
) -> None:
    tasks = [
        ask("first", f"{echo.url}/{{{{input.word}}}}"),
        {"ref": "size", "type": "text.size", "input": {"text": "{{refs.first.output.text}}!"}},
    ]
    output = {"size": "{{refs.size.output.characters}}", "said": "It has {{output.size}}."}
    async with start(database, registry) as engine:
        view = await engine.until(await engine.submit(run_flow, run_of(tasks, output, {"word": "hello"})))

    assert view["result"] == {"outputs": {"size": 6, "said": "It has 6."}}
    assert states(view) == {"first": "succeeded", "size": "succeeded"}


async def test_parallel_tasks_run_as_soon_as_they_may(
    start: Start, database: Database, registry: Registry, echo: Echo
) -> None:
    tasks = [
        {"ref": "last", "type": "text.size", "input": {"text": "{{refs.slow.output.text}}{{refs.after.output.text}}"}},
        ask("slow", f"{echo.url}/hold/slow"),
        ask("quick", f"{echo.url}/quick"),
        ask("after", f"{echo.url}/after-{{{{refs.quick.output.text}}}}"),
    ]
    async with start(database, registry) as engine:
        spec = run_of(tasks, {"n": "{{refs.last.output.characters}}"}, execution="parallel")
        job = await engine.submit(run_flow, spec, steps=[PlannedStep(task["ref"], task["ref"]) for task in tasks])
        await engine.until_step(job, "after", "succeeded")
        meanwhile = states(await engine.view(job))
        echo.let.set()
        view = await engine.until(job)
    assert meanwhile == {"last": "pending", "slow": "running", "quick": "succeeded", "after": "succeeded"}
    assert view["result"] == {"outputs": {"n": len("slow") + len("after-quick")}}


async def test_what_a_condition_passes_over_and_what_needs_it_are_skipped(
    start: Start, database: Database, registry: Registry, echo: Echo
) -> None:
    tasks = [
        ask("first", f"{echo.url}/first"),
        ask("never", f"{echo.url}/never", condition={"left": "{{refs.first.output.status}}", "op": "ne", "right": 200}),
        {"ref": "needs", "type": "text.size", "input": {"text": "{{refs.never.output.text}}"}},
        {"ref": "may", "type": "text.size", "input": {"text": "<{{refs.never.output.text}}>"}},
    ]
    output = {"needs": "{{refs.needs.output.characters}}", "may": "{{refs.may.output.characters}}"}
    async with start(database, registry) as engine:
        view = await engine.until(await engine.submit(run_flow, run_of(tasks, output)))
    assert view["result"] == {"outputs": {"needs": None, "may": 2}}
    assert echo.counted() == {"/first": 1}


async def test_a_failure_is_passed_over_replaced_or_ends_it_and_a_retry_goes_on_there(
    start: Start, database: Database, registry: Registry, echo: Echo
) -> None:
    echo.fail(Fault("/passed", status=404))
    echo.fail(Fault("/replaced", status=500))
    echo.fail(Fault("/ends", times=2, status=503))
    tasks = [
        ask("before", f"{echo.url}/before"),
        ask("passed", f"{echo.url}/passed", on_error="continue"),
        ask("replaced", f"{echo.url}/replaced", on_error="default", fallback={"text": "{{refs.before.output.text}}"}),
        ask("ends", f"{echo.url}/ends", retry={"attempts": 2, "delay": 0.01}),
    ]
    output = {"passed": "{{refs.passed.output.text}}", "replaced": "{{refs.replaced.output.text}}"}
    async with start(database, registry) as engine:
        job = await engine.submit(run_flow, run_of(tasks, output))
        failed = await engine.until(job)
        await engine.retry(job)
        view = await engine.until(job)
    assert (failed["state"], failed["error"]["step"], failed["error"]["code"]) == ("failed", "ends", "http_status")
    assert view["result"] == {"outputs": {"passed": None, "replaced": "before"}}
    assert echo.counted() == {"/before": 1, "/passed": 1, "/replaced": 1, "/ends": 3}


async def test_a_fallback_that_cannot_be_resolved_fails_the_flow(
    start: Start, database: Database, registry: Registry, echo: Echo
) -> None:
    echo.fail(Fault("/fails", status=404))
    fallback = {"text": "{{input.given.nothing}}"}
    tasks = [ask("fails", f"{echo.url}/fails", on_error="default", fallback=fallback)]
    async with start(database, registry) as engine:
        view = await engine.until(await engine.submit(run_flow, run_of(tasks, {}, {"given": {}})))
    assert (view["error"]["code"], view["error"]["step"]) == ("bad_reference", "fails:fallback")


async def test_a_loop_keeps_the_order_of_its_items(
    start: Start, database: Database, registry: Registry, echo: Echo
) -> None:
    body = {"type": "http.request", "input": {"url": f"{echo.url}/{{{{item.name}}}}-{{{{index}}}}"}}
    tasks = [{"ref": "each", "type": "flow.foreach",
              "input": {"items": "{{input.names}}", "task": body, "concurrency": 3}}]  # fmt: skip
    names = [{"name": chr(97 + number)} for number in range(7)]
    async with start(database, registry) as engine:
        view = await engine.until(
            await engine.submit(run_flow, run_of(tasks, {"all": "{{refs.each.output.results}}"}, {"names": names}))
        )
    assert [one["text"] for one in view["result"]["outputs"]["all"]] == [
        f"{n['name']}-{i}" for i, n in enumerate(names)
    ]
    assert states(view)["each[6]"] == "succeeded"


async def test_waits_hold_nothing_and_a_person_answers(
    start: Start, database: Database, registry: Registry, echo: Echo
) -> None:
    tasks = [
        {"ref": "pause", "type": "flow.delay", "input": {"seconds": 0.1}},
        {"ref": "ask", "type": "flow.wait_event", "input": {"name": "approval"}},
        ask("then", f"{echo.url}/{{{{refs.ask.output.data.word}}}}", condition="{{refs.ask.output.data.ok}}"),
    ]
    async with start(database, registry) as engine:
        job = await engine.submit(run_flow, run_of(tasks, {"text": "{{refs.then.output.text}}"}))
        await engine.until(job, "waiting")
        await engine.until_step(job, "ask:wait", "running")
        await engine.send(job, "approval", {"ok": True, "word": "yes"})
        view = await engine.until(job)
    assert view["result"] == {"outputs": {"text": "yes"}}


async def test_large_values_become_files_and_are_read_again(
    start: Start, database: Database, registry: Registry, echo: Echo, app: MemoryApp
) -> None:
    tasks = [
        ask("large", f"{echo.url}/large"),
        {"ref": "size", "type": "text.size", "input": {"text": "{{refs.large.output.text}}."}},
    ]
    output = {"size": "{{refs.size.output.characters}}", "text": "{{refs.large.output.text}}"}
    async with start(database, registry) as engine:
        view = await engine.until(await engine.submit(run_flow, run_of(tasks, output)))
    outputs = view["result"]["outputs"]
    assert outputs["size"] == 300_001
    assert (outputs["text"]["size"], outputs["text"]["spilled"]) == (300_000, "text")
    (kept,) = app.artifacts.values()
    assert kept.size == 300_000


async def test_what_cannot_be_resolved_fails_its_task_in_words(
    start: Start, database: Database, registry: Registry, echo: Echo
) -> None:
    tasks = [
        {"ref": "ask", "type": "flow.wait_event", "input": {"name": "given"}},
        ask("uses", f"{echo.url}/{{{{refs.ask.output.data.word}}}}"),
    ]
    async with start(database, registry) as engine:
        job = await engine.submit(run_flow, run_of(tasks, {}))
        await engine.until(job, "waiting")
        await engine.send(job, "given", {"other": 1})
        view = await engine.until(job)
    assert (view["error"]["step"], view["error"]["code"]) == ("uses", "bad_reference")
    assert "`{{refs.ask.output.data.word}}` has no member `word`" in view["error"]["message"]


async def test_a_sub_flow_is_waited_for_and_looked_at_anew_by_a_retry(
    start: Start, database: Database, registry: Registry, echo: Echo, app: MemoryApp
) -> None:
    sub = {"workflow_id": "wf-12345678", "input": {"a": "{{input.a}}"}}
    tasks = [{"ref": "sub", "type": "flow.subworkflow", "input": sub}]
    async with start(database, registry) as engine:
        job = await engine.submit(run_flow, run_of(tasks, {"all": "{{refs.sub.output.output}}"}, {"a": 1}))
        await engine.until(job, "waiting")
        app.children[job, "sub"] = ChildEnd(execution_id="ex-child", status="FAILED", error={"message": "Too bad."})
        await engine.send(job, child_event("sub"), None)
        failed = await engine.until(job)
        app.children[job, "sub"] = ChildEnd(execution_id="ex-child", status="COMPLETED", outputs={"b": 2})
        await engine.retry(job)
        view = await engine.until(job)
    assert failed["error"] == {
        "code": "sub_flow_failed", "message": "The sub-flow ex-child has ended as FAILED. Too bad.", "step": "sub",
    }  # fmt: skip
    assert view["result"] == {"outputs": {"all": {"b": 2}}}
    assert app.started == [("sub", "wf-12345678", None, {"a": 1})] * 2


async def test_a_cancel_takes_the_sub_flow_with_it(
    start: Start, database: Database, registry: Registry, echo: Echo, app: MemoryApp
) -> None:
    tasks = [{"ref": "sub", "type": "flow.subworkflow", "input": {"workflow_id": "wf-12345678"}}]
    async with start(database, registry) as engine:
        job = await engine.submit(run_flow, run_of(tasks, {}))
        await engine.until(job, "waiting")
        await engine.cancel(job)
        view = await engine.until(job)
    assert view["state"] == "cancelled"
    assert app.cancelled == ["sub"]


async def test_a_failure_stops_the_sub_flows_beside_it(
    start: Start, database: Database, registry: Registry, echo: Echo, app: MemoryApp
) -> None:
    echo.fail(Fault("/fails", status=404))
    tasks = [
        {"ref": "sub", "type": "flow.subworkflow", "input": {"workflow_id": "wf-12345678"}},
        {"ref": "go", "type": "flow.wait_event", "input": {"name": "go"}},
        ask("fails", f"{echo.url}/fails", depends_on=["go"]),
    ]
    async with start(database, registry) as engine:
        job = await engine.submit(run_flow, run_of(tasks, {}, execution="parallel"))
        await engine.until_step(job, "sub:wait", "running")
        await engine.send(job, "go", None)
        await engine.until_step(job, "sub:stop", "succeeded")
        app.children[job, "sub"] = ChildEnd(execution_id="ex-child", status="CANCELLED")
        await engine.send(job, child_event("sub"), None)
        view = await engine.until(job)
    assert app.cancelled == ["sub"]
    assert (view["state"], view["error"]["step"], view["error"]["code"]) == ("failed", "fails", "http_status")


async def test_an_item_that_fails_stops_the_others_of_its_loop(
    start: Start, database: Database, registry: Registry, echo: Echo, app: MemoryApp
) -> None:
    app.gone = {"wf-gonegone"}
    body = {"type": "flow.subworkflow", "input": {"workflow_id": "{{item}}"}}
    tasks = [
        {"ref": "each", "type": "flow.foreach", "on_error": "continue",
         "input": {"items": "{{input.all}}", "task": body, "concurrency": 2}},
        ask("after", f"{echo.url}/after"),
    ]  # fmt: skip
    items = ["wf-12345678", "wf-gonegone", "wf-12345678"]
    async with start(database, registry) as engine:
        job = await engine.submit(run_flow, run_of(tasks, {"n": "{{refs.each.output.count}}"}, {"all": items}))
        await engine.until_step(job, "each[0]:stop", "succeeded")
        app.children[job, "each[0]"] = ChildEnd(execution_id="ex-child", status="CANCELLED")
        await engine.send(job, child_event("each[0]"), None)
        view = await engine.until(job)
    assert app.cancelled == ["each[0]"]
    assert sorted(task for task, *_ in app.started) == ["each[0]", "each[1]"]
    assert (view["state"], view["result"]) == ("succeeded", {"outputs": {"n": None}})
    assert echo.counted() == {"/after": 1}


async def test_a_sub_flow_that_may_fail_is_passed_over_by_a_retry_too(
    start: Start, database: Database, registry: Registry, echo: Echo, app: MemoryApp
) -> None:
    app.gone = {"wf-gonegone"}
    echo.fail(Fault("/ends", status=404))
    tasks = [
        {"ref": "sub", "type": "flow.subworkflow", "on_error": "continue", "input": {"workflow_id": "wf-gonegone"}},
        ask("ends", f"{echo.url}/ends"),
    ]
    async with start(database, registry) as engine:
        job = await engine.submit(run_flow, run_of(tasks, {"sub": "{{refs.sub.output.output}}"}))
        failed = await engine.until(job)
        await engine.retry(job)
        view = await engine.until(job)
    assert (failed["state"], failed["error"]["step"]) == ("failed", "ends")
    start_of = next(step for step in failed["steps"] if step["key"] == "sub:start")
    assert (start_of["state"], start_of["error"]["passed_over"]) == ("failed", True)
    assert (view["state"], view["result"]) == ("succeeded", {"outputs": {"sub": None}})
    assert states(view)["sub:start"] == "failed"


async def test_secrets_among_the_outputs_are_masked_in_the_result(
    start: Start, database: Database, registry: Registry, echo: Echo
) -> None:
    tasks = [{"ref": "ask", "type": "http.request",
              "input": {"url": f"{echo.url}/a", "headers": {"X-Key": "{{input.key}}"}}}]  # fmt: skip
    output = {"key": "{{input.key}}", "again": "<{{output.key}}>", "text": "{{refs.ask.output.text}}"}
    async with start(database, registry) as engine:
        job = await engine.submit(run_flow, run_of(tasks, output, {"key": "tok-secret"}))
        view = await engine.until(job)
        async with database.statement() as connection:
            kept = await connection.scalar(text("SELECT result FROM jobs.step WHERE key = :all"), {"all": ALL_OUTPUTS})
            events = list((await connection.execute(text("SELECT data::text FROM jobs.event"))).scalars())
    assert view["result"] == {"outputs": {"key": "•••", "again": "•••", "text": "a"}}
    assert kept["outputs"] == {"key": "tok-secret", "again": "<tok-secret>", "text": "a"}
    assert not [one for one in events if "tok-secret" in one]


async def test_a_fault_is_told_in_the_words_of_the_flow(
    start: Start, database: Database, registry: Registry, echo: Echo
) -> None:
    body = {
        "title": "a flow", "inputs": [{"name": "given", "type": "any"}], "outputs": [],
        "tasks": [{"name": "size", "type": "text.size", "inputs": {"text": "<{{inputs.given.word}}>"}}],
    }  # fmt: skip
    dialect, flow = accept(body, task_types())
    spec = FlowRun(flow_id=ID, version=1, flow=flow, inputs={"given": {}}, dialect=dialect)
    async with start(database, registry) as engine:
        view = await engine.until(await engine.submit(run_flow, spec))
    assert "`{{inputs.given.word}}` has no member `word`" in view["error"]["message"]

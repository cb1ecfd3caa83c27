"""Executions for people: started, looked at, answered, cancelled, run again, deleted."""

from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.flows import definitions, history, orphans, repository, service, slugs, starting, views
from services.app.flows.history import Listed
from services.app.flows.progress import OF_JOB, task_status
from services.app.flows.starting import Start
from services.app.flows.tables import ExecutionRow, FlowRow
from services.app.identity.caller import Caller
from services.app.jobs import repository as jobs
from shared.clock import iso
from shared.errors import Problem
from shared.flows.definition import Flow, Task, loop_body
from shared.flows.dialects import DIALECTS
from shared.flows.dialects.words import DialectName
from shared.flows.sight import Sight, referred
from shared.http.pages import Page
from shared.jobs import retention
from shared.jobs import views as job_views
from shared.jobs.ledger import FINAL, JobView
from shared.jobs.stored import json_text
from shared.jobs.tables import StepRow
from shared.objects.store import blob_key

MAX_ANSWER = 64 * 1024  # bytes of the data of an event


class Found(NamedTuple):
    """What a path names."""

    flow: FlowRow
    execution: ExecutionRow


async def find(session: AsyncSession, caller: Caller, workflow_id: str, execution_id: str) -> Found:
    """An execution of that very flow, be it deleted by now."""
    flow = await service.found(session, caller, workflow_id, deleted=True)
    name = slugs.execution(execution_id)
    execution = None if name is None else await history.get(session, name)
    if execution is None or execution.flow_id != flow.id:
        raise Problem("not_found", "The workflow has no such execution.")
    return Found(flow, execution)


async def start(
    context: AppContext,
    session: AsyncSession,
    caller: Caller,
    workflow_id: str,
    order: definitions.Order,
    provider_key: str | None,
) -> Found:
    flow = await service.changeable(session, caller, workflow_id)
    version = await service.version_of(session, flow)
    definition = Flow.model_validate(version.definition)
    named = definitions.credentials_of(definition, order.inputs, order.dialect)
    credentials = await definitions.check_credentials(session, caller, named, flow.project_id)
    asked = Start(
        flow, version, definition, order.inputs, order.dialect, "api", caller.user_id, caller.key_id, credentials,
        order.webhook_url, provider_key,
    )  # fmt: skip
    execution = await starting.start(context, session, asked)
    await _record(session, caller, "execution.start", execution, version=version.number)
    return Found(flow, execution)


# ---- looking


def envelope(page: Page[Any], dialect: DialectName | None, *, whole: bool) -> dict[str, Any]:
    """A page as everywhere, and the same lines as `executions`."""
    body = page.envelope(lambda row: views.listed(Listed(*row), dialect, whole=whole))
    return {**body, "executions": body["data"]}


async def view(
    context: AppContext, session: AsyncSession, found: Found, dialect: DialectName, job: JobView | None = None
) -> dict[str, Any]:
    """The public view of an execution; `job` where its view is known already."""
    flow, execution = found
    shown = job or await _job(session, execution.id)
    definition = await _definition(session, execution)
    status = OF_JOB[shown["state"]]
    states = await history.task_states(session, execution.id)
    tasks = [(task.name, task_status(states.get(task.name), status)) for task in definition.tasks]
    sight = Sight(definition, context.task_types)
    result = shown["result"] if status == "COMPLETED" else None
    values = {
        "inputs": sight.inputs(execution.inputs),
        "outputs": None if result is None else sight.results(result["outputs"]),
    }
    linked = await _linked(session, execution, values)
    return views.execution_view(flow, execution, shown, status, tasks, linked, dialect)


async def task_view(
    context: AppContext, session: AsyncSession, found: Found, name: str, dialect: DialectName
) -> dict[str, Any]:
    """One task, or one item of a loop (`name[3]`), with what it took, what it gave, and how it went."""
    execution = found.execution
    definition = await _definition(session, execution)
    place = _place(definition, name)
    step = None if place is None else await history.step(session, execution.id, name)
    if place is None or (place.index is not None and step is None):
        raise Problem("not_found", "The execution has no such task.")
    job = await _job(session, execution.id)
    sight = Sight(definition, context.task_types)
    states = await history.task_states(session, execution.id)
    status = task_status(states.get(name) if place.index is None else _state_of(step), OF_JOB[job["state"]])
    values = await _values(session, execution, definition, place, sight)
    outputs = _outputs(step)
    shown = {
        "inputs": sight.task_inputs(place.task, values),
        "outputs": None if outputs is None else sight.outputs(place.task.name, outputs),
    }
    linked = await _linked(session, execution, shown)
    words = DIALECTS[dialect]
    items = {} if not place.task.is_loop or place.index is not None else {
        "items": await history.items(session, execution.id, name)
    }  # fmt: skip
    return {
        words.task_name: name, "type": place.task.written_type, "status": status, words.input: linked["inputs"],
        words.output: linked["outputs"], **_of_step(step), **await _of_parts(session, execution, name, step), **items,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Place:
    """A task of a flow, or what a loop does at one of its items."""

    task: Task
    index: int | None = None
    loop: Task | None = None


def _place(flow: Flow, name: str) -> _Place | None:
    loop_name, bracket, rest = name.partition("[")
    task = flow.task(loop_name)
    if task is None or not bracket:
        return None if task is None else _Place(task)
    number = rest.removesuffix("]")
    body = loop_body(task) if task.is_loop else None
    if body is None or not number.isascii() or not number.isdigit() or len(number) > 6 or not rest.endswith("]"):
        return None
    return _Place(body, int(number), task)


async def _values(
    session: AsyncSession, execution: ExecutionRow, flow: Flow, place: _Place, sight: Sight
) -> dict[str, Any]:
    """What the references of a task name, as far as it is known, and as it may be seen."""
    wanted = referred(place.task.inputs) | (referred(place.loop.inputs) if place.loop else set())
    results = await history.results(session, execution.id, wanted)
    refs = {}
    for name in wanted:
        task = flow.task(name)
        if name in results:
            refs[name] = {"output": sight.outputs(name, _given(results[name]))}
        elif task is not None and task.on_error == "default":
            refs[name] = {"output": task.fallback or {}}
    values: dict[str, Any] = {"input": sight.inputs(execution.inputs), "refs": refs}
    if place.loop is not None and place.index is not None:
        items = sight.task_inputs(place.loop, values).get("items")
        if isinstance(items, list) and place.index < len(items):
            values |= {"item": items[place.index], "index": place.index}
    return values


def _given(result: Any) -> dict[str, Any]:
    outputs = result.get("outputs") if isinstance(result, dict) else None
    return outputs if isinstance(outputs, dict) else {}


def _outputs(step: StepRow | None) -> dict[str, Any] | None:
    return _given(step.result) if step is not None and step.state == "succeeded" else None


def _state_of(step: StepRow | None) -> history.TaskState | None:
    if step is None:
        return None
    done = step.result.get("status") if isinstance(step.result, dict) else None
    return history.TaskState(step.state, done, step.state != "pending")


def _of_step(step: StepRow | None) -> dict[str, Any]:
    result = step.result if step is not None and isinstance(step.result, dict) else {}
    return {
        "reason": result.get("reason"),
        "error": step.error if step else None,
        "attempts": step.attempt if step else 0,
        "percent": step.percent if step else None,
        "message": step.message if step else None,
        "started_at": iso(step.started_at) if step else None,
        "completed_at": iso(step.ended_at) if step else None,
    }


async def _of_parts(session: AsyncSession, execution: ExecutionRow, name: str, step: StepRow | None) -> dict[str, Any]:
    """What is known of a task whose own step has not begun, while its parts have."""
    if step is not None and step.attempt > 0:
        return {}
    parts = await history.parts(session, execution.id, name)
    return {
        "error": parts.error,
        "attempts": parts.attempt or 0,
        "started_at": iso(parts.started_at),
        "completed_at": iso(parts.ended_at) if parts.error is not None else None,
    }


async def _definition(session: AsyncSession, execution: ExecutionRow) -> Flow:
    version = await repository.version(session, execution.flow_id, execution.version)
    assert version is not None  # versions go with their flow only, and that stays while it has executions
    return Flow.model_validate(version.definition)


async def _job(session: AsyncSession, execution_id: UUID) -> JobView:
    job = await job_views.load_one(session, execution_id)
    if job is None:
        raise Problem("not_found", "The workflow has no such execution.")
    return job


async def _linked(session: AsyncSession, execution: ExecutionRow, values: dict[str, Any]) -> dict[str, Any]:
    files = views.files_in(values)
    places = await history.places(session, files, execution.project_id) if files else {}
    return {name: views.with_links(value, places) for name, value in values.items()}


# ---- changing


async def cancel(context: AppContext, session: AsyncSession, caller: Caller, found: Found) -> None:
    await jobs.changeable(session, caller, found.execution.id)
    await context.ledger.cancel(session, found.execution.id)
    await _record(session, caller, "execution.cancel", found.execution)


async def retry(
    context: AppContext, session: AsyncSession, caller: Caller, found: Found, provider_key: str | None
) -> None:
    """Again from the failed task. The key of before has gone with its end; another one may come with this."""
    await jobs.changeable(session, caller, found.execution.id)
    await starting.check_room(context, session, found.execution.project_id)
    await context.ledger.retry(session, found.execution.id, key_id=caller.key_id)
    if provider_key is not None:
        await starting.keep_secret(context, session, found.execution.id, provider_key)
    await _record(session, caller, "execution.retry", found.execution)


async def answer(
    context: AppContext, session: AsyncSession, caller: Caller, found: Found, name: str, data: dict[str, Any]
) -> None:
    """Give the execution what a person says; kept until a task waits for an event of that name."""
    caller.check_works_in(found.execution.project_id, "execution")
    if len(json_text(data).encode()) > MAX_ANSWER:
        raise Problem("validation_failed", f"The data of an event has at most {MAX_ANSWER >> 10} KiB.")
    await context.ledger.send_event(session, found.execution.id, name, data)
    await _record(session, caller, "execution.event", found.execution, event=name)


async def delete(context: AppContext, session: AsyncSession, caller: Caller, found: Found) -> list[str]:
    """Forget an execution that has ended. Returns the keys of objects that may go once this is committed."""
    execution = found.execution
    await jobs.changeable(session, caller, execution.id)
    await orphans.cancel_of(context, session, execution.id)
    blobs = [blob_key(sha256) for sha256 in await history.digests(session, execution.id)]
    if not await retention.forget(session, execution.id):
        state = (await _job(session, execution.id))["state"]
        detail = "Retry it, so that what is left can be undone." if state in FINAL else "Cancel it first."
        raise Problem("conflict", f"The execution has not come to its end. {detail}")
    await _record(session, caller, "execution.delete", execution)
    return blobs


async def _record(session: AsyncSession, caller: Caller, action: str, execution: ExecutionRow, **details: Any) -> None:
    await audit.record(
        session,
        caller,
        action,
        "execution",
        execution.id,
        project_id=execution.project_id,
        slug=execution.slug,
        **details,
    )

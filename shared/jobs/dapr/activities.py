"""The steps of runs as activities: each begins and reports through the app, and stops when the app says so.

An activity never fails by its own account: what came of it is its answer, `{"result"}`, `{"failed"}`, `{"later"}`,
`{"stop"}` and so on, which the workflow (`shared.jobs.dapr.drive`) acts on. One that is lost is run again by Dapr, and
begins anew.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import structlog

from shared.jobs.attempts import CancelRequested
from shared.jobs.dapr.drive import END, STEP, UNDO, WAIT, Answer
from shared.jobs.dapr.ports import Begin, JobsPort, Stop, Working
from shared.jobs.declare import Registry, RetryPolicy, StepDef, step_named
from shared.jobs.driver import (
    CRASHES,
    LOST,
    SHORT_WAIT,
    Failure,
    StepContext,
    describe,
    error_body,
    failure_of_step,
    is_being_cancelled,
    small_enough,
)
from shared.jobs.ledger import StaleFence
from shared.jobs.outcomes import Permanent
from shared.jobs.undoing import undo_step
from shared.telemetry.work import step_span

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Given:
    """What an activity is given: which run it is of, and what it shall do."""

    job_id: UUID
    fence: int
    kind: str
    version: int
    topic: UUID | None
    traceparent: str | None
    about: dict[str, Any]

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Given":
        topic = UUID(data["topic"]) if data["topic"] else None
        return cls(
            UUID(data["job_id"]), int(data["fence"]), data["kind"], int(data["version"]), topic, data["traceparent"], data
        )  # fmt: skip

    @property
    def key(self) -> str:
        return str(self.about["key"])


class Stopped(Exception):
    """The attempt must not go on, for this reason."""

    outcome = "stopped"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True, eq=False)
class _Attempt:
    working: Working
    task: "asyncio.Task[Any]"
    reason: str | None = None


@dataclass(slots=True)
class Activities:
    """Runs on the process's own event loop, where the tools live."""

    registry: Registry
    jobs: JobsPort
    _running: dict[UUID, _Attempt] = field(default_factory=dict)

    @property
    def handlers(self) -> dict[str, Callable[[Given], Awaitable[Answer]]]:
        return {STEP: self._step, WAIT: self._wait, UNDO: self._undo, END: self._end}

    async def run(self, name: str, data: dict[str, Any]) -> Answer:
        await asyncio.sleep(data.get("pause") or 0)
        try:
            return await self.handlers[name](Given.of(data))
        except Stopped as stopped:
            return {"stop": stopped.reason}
        except StaleFence:
            return {"stop": "stale"}
        except CancelRequested:
            return {"stop": "cancelled"}

    # ---- what the beat asks for

    @property
    def working(self) -> list[Working]:
        return [one.working for one in self._running.values()]

    def stop(self, stops: list[Stop]) -> None:
        for one in stops:
            attempt = self._running.get(one.token)
            if attempt is not None and attempt.reason is None:
                attempt.reason = one.reason
                attempt.task.cancel()

    def stop_all(self) -> None:
        """No answer can be waited for any more: the runs are another's by now, or will be."""
        self.stop([Stop(token=token, reason="stale") for token in list(self._running)])

    # ---- activities

    async def _step(self, given: Given) -> Answer:
        definition, tools = self._definition(given)
        argument = definition.argument.validate_python(given.about["argument"])
        while True:
            begun = await self._begin(given, definition.title, definition.weight)
            if begun.token is None:
                return {"result": begun.result}
            if begun.tries > definition.retry.attempts + CRASHES:
                return await self._give_up(given, definition, begun.token)
            try:
                with self._seen(given, definition, begun.number):
                    return {"result": await self._attempt(given, definition, tools, argument, begun)}
            except (StaleFence, Stopped):
                raise
            except asyncio.CancelledError as error:
                if is_being_cancelled():
                    raise
                failure = await self._failed(given, definition, begun, error)  # it came from within the step
            except Exception as error:  # every other fault of a step ends in the ledger: tried again, or failed
                failure = await self._failed(given, definition, begun, error)
            if not failure.again:
                return {"failed": [failure.body["code"], failure.body["message"]]}
            if failure.after > SHORT_WAIT:
                return {"later": failure.after}
            await asyncio.sleep(failure.after)

    async def _wait(self, given: Given) -> Answer:
        about = given.about
        token = about["token"]
        if token is None:
            begun = await self._begin(given, str(about["title"]), 0.0)
            if begun.token is None:
                return {"result": begun.result}
            token = str(begun.token)
        job, fence, key, event = given.job_id, given.fence, given.key, about["event"]
        while True:
            found = await self.jobs.wait(job, fence, key, about["seconds"], event)
            if found.taken or (event is None and found.left is not None and found.left <= 0):
                await self.jobs.succeed(job, fence, key, UUID(token), found.data)
                return {"result": found.data}
            if found.left is None or found.left > SHORT_WAIT:
                return {"left": found.left, "token": token}
            if found.left <= 0:
                message = f"The event {event} did not come in time."
                await self.jobs.fail(job, fence, key, UUID(token), error_body("timed_out", message, key), False, 0.0)
                return {"failed": ["timed_out", message]}
            await asyncio.sleep(found.left)

    async def _undo(self, given: Given) -> Answer:
        job, fence, key = given.job_id, given.fence, given.key
        definition, tools = self._definition(given)
        begun = await self.jobs.begin_undo(job, fence, key)
        error: Exception | None = Permanent("worker_lost", LOST.format("undo"))
        if begun.tries <= CRASHES:
            argument = definition.argument.validate_python(given.about["argument"])
            result = None if begun.result is None else definition.result.validate_python(begun.result)
            seen = partial(self._seen, given, definition, undo=True)
            undoing = undo_step(definition, StepContext(job, key, 0, tools), argument, result, seen)
            error = await self._guarded(Working(job_id=job, fence=fence, key=key, token=uuid4(), undo=True), undoing)
        if error is None:
            await self.jobs.undone(job, fence, key)
            return {}
        code, message = describe(error)
        body = {**error_body("undo_failed", f"{definition.title}: {message}", key), "cause": code}
        await self.jobs.undo_failed(job, fence, key, body)
        return {"left": body}

    async def _end(self, given: Given) -> Answer:
        about, job, fence = given.about, given.job_id, given.fence
        match about["how"]:
            case "succeeded":
                await self.jobs.end_succeeded(job, fence, about["result"])
            case "failed":
                await self.jobs.end_failed(job, fence, about["error"], about["undo"])
            case "parked":
                await self.jobs.end_parked(job, fence, about["seconds"], about["names"])
            case "undone":
                await self.jobs.end_undone(job, fence, about["left"], about["failure"])
            case "released":
                await self.jobs.release(job, fence)
        return {}

    # ---- one attempt

    async def _begin(self, given: Given, title: str, weight: float) -> Begin:
        return await self.jobs.begin(given.job_id, given.fence, given.key, title, weight)

    async def _attempt(self, given: Given, definition: StepDef, tools: Any, argument: Any, begun: Begin) -> Any:
        job, fence, key, token = given.job_id, given.fence, given.key, begun.token
        assert token is not None

        async def write(context: StepContext) -> None:
            await self.jobs.progress(job, fence, key, token, context.percent, context.message)

        context = StepContext(job, key, begun.number, tools, write)
        try:
            working = Working(job_id=job, fence=fence, key=key, token=token)
            result = await self._guarded(working, _in_time(definition, context, argument))
        finally:
            context.close()
        data = small_enough(definition.dump(result), "step")
        await self.jobs.succeed(job, fence, key, token, data)
        return data

    async def _guarded(self, working: Working, work: Awaitable[Any]) -> Any:
        """Do it while the beat lets it. Raises `Stopped` when that has stopped it."""
        task = asyncio.ensure_future(work)
        attempt = self._running[working.token] = _Attempt(working, task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            self._running.pop(working.token, None)
        if attempt.reason is not None and (task.cancelled() or task.exception() is not None):
            raise Stopped(attempt.reason)
        return task.result()

    async def _failed(self, given: Given, definition: StepDef, begun: Begin, error: BaseException) -> Failure:
        """Write the failure down."""
        failure = failure_of_step(given.job_id, given.key, definition, begun.tries, error)
        assert begun.token is not None
        await self.jobs.fail(
            given.job_id, given.fence, given.key, begun.token, failure.body, failure.again, failure.after
        )
        return failure

    async def _give_up(self, given: Given, definition: StepDef, token: UUID) -> Answer:
        message = LOST.format("step")
        body = error_body("worker_lost", message, given.key, definition)
        await self.jobs.fail(given.job_id, given.fence, given.key, token, body, False, 0.0)
        return {"failed": ["worker_lost", message]}

    def _seen(self, given: Given, step: StepDef, attempt: int, *, undo: bool = False) -> AbstractContextManager[None]:
        return step_span(
            given.job_id, given.kind, given.key, attempt, given.traceparent, step=step.key, workflow=given.topic, undo=undo
        )  # fmt: skip

    def _definition(self, given: Given) -> tuple[StepDef, Any]:
        _, tools = self.registry.find(given.kind, given.version)
        definition = step_named(str(given.about["step"]))
        if own := given.about.get("own"):
            definition = replace(
                definition, title=own["title"], retry=RetryPolicy(**own["retry"]), may_fail=own["may_fail"]
            )
        return definition, tools


async def _in_time(definition: StepDef, context: StepContext, argument: Any) -> Any:
    async with asyncio.timeout(definition.retry.timeout):
        return await definition.fn(context, argument)

"""Drives one run of a job on the embedded engine: replays what is remembered, runs what is not, undoes what must go.

The job function is driven from its start each time. Remembered steps return at once, so it arrives where it was.
In the undo phase it is driven the same way up to its first step without a result; what had begun is then undone in
reverse order.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from shared.jobs.attempts import Attempts, Begun, CancelRequested, Remembered
from shared.jobs.claims import Claim
from shared.jobs.declare import MAX_DATA_BYTES, JobDef, StepDef
from shared.jobs.hub import Hub, signal_name
from shared.jobs.ledger import PASSED_OVER, StaleFence
from shared.jobs.outcomes import Permanent, Retry, StepError
from shared.jobs.run import Latch, NeverOpened, StepFailed
from shared.jobs.stored import json_text, short_text
from shared.jobs.undoing import undo_step, unreached
from shared.telemetry.work import step_span

SHORT_WAIT = 1.0  # seconds that a run waits in its slot rather than giving it up
CRASHES = 3  # how often a step, or its undo, may take its process down before it counts as failed
LOST = "The process was lost each time while this {} ran."
PROGRESS_INTERVAL = 0.5

log = structlog.get_logger(__name__)


class Park(BaseException):
    """The run waits: for `seconds` (None: for ever), or for one of the named events."""

    outcome = "waiting"

    def __init__(self, seconds: float | None, names: frozenset[str]) -> None:
        super().__init__(seconds, names)
        self.seconds = seconds
        self.names = names


def error_body(code: str, message: str, step: str | None, definition: StepDef | None = None) -> dict[str, Any]:
    """As the ledger keeps it. That of a step which may fail is `passed_over` by a retry of the job."""
    body = {"code": code, "message": message, "step": step}
    return body | {PASSED_OVER: True} if definition is not None and definition.may_fail else body


def describe(error: BaseException) -> tuple[str, str]:
    """Code and message of a step's failure; of an unexpected one only its type, for its text may hold anything."""
    if isinstance(error, StepError):
        return error.code, short_text(error.message)
    if isinstance(error, TimeoutError):
        return "timed_out", "The step took longer than it may."
    return "internal", f"An unexpected fault ({type(error).__name__})."


@dataclass(frozen=True, slots=True)
class Failure:
    """What an attempt's failure is told as, and whether and in how many seconds the step is tried again."""

    body: dict[str, Any]
    again: bool
    after: float


def failure_of_step(job_id: UUID, key: str, definition: StepDef, tries: int, error: BaseException) -> Failure:
    """`tries` are those of this run, with the one that has failed."""
    code, message = describe(error)
    retry = definition.retry
    if code == "internal":
        log.error("step_fault", job=str(job_id), step=key, exc_info=error)
    after = retry.backoff(tries)
    if isinstance(error, Retry) and error.after is not None:
        after = max(error.after, 0.0)
    again = not isinstance(error, Permanent) and tries < retry.attempts
    return Failure(error_body(code, message, key, definition), again, after)


def small_enough(data: Any, whose: str) -> Any:
    if len(json_text(data).encode()) > MAX_DATA_BYTES:
        raise Permanent("result_too_large", f"The {whose}'s result is over {MAX_DATA_BYTES} bytes.")
    return data


def is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@dataclass(slots=True)
class StepContext:
    """The `Step` that a step function gets: progress is kept here and written by a task of its own."""

    job_id: UUID
    key: str
    attempt: int
    tools: Any
    write: Callable[["StepContext"], Awaitable[None]] | None = None
    percent: float | None = None
    message: str | None = None
    _changed: bool = False
    _closed: asyncio.Event = field(default_factory=asyncio.Event)
    _writer: asyncio.Task[None] | None = None

    def progress(self, percent: float | None = None, message: str | None = None) -> None:
        if percent is not None:
            percent = None if math.isnan(percent) else round(min(max(float(percent), 0.0), 100.0), 1)
        if message is None:
            message = self.message
        if (percent, message) != (self.percent, self.message):
            self.percent, self.message = percent, message
            self._changed = True
            if self.write is not None and (self._writer is None or self._writer.done()):
                self._writer = asyncio.get_running_loop().create_task(self._keep_written(self.write))

    def close(self) -> None:
        """The attempt has ended: what was not written yet is not worth writing any more."""
        self._closed.set()

    async def _keep_written(self, write: Callable[["StepContext"], Awaitable[None]]) -> None:
        while self._changed and not self._closed.is_set():
            self._changed = False
            try:
                await write(self)
            except StaleFence:
                return  # the attempt has ended, or belongs to another process: its own report will be told so
            except Exception as error:  # readers wait for the next one
                log.warning("progress_lost", job=str(self.job_id), step=self.key, error=type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROGRESS_INTERVAL):
                    await self._closed.wait()


@dataclass(slots=True)
class _Done:
    definition: StepDef
    key: str
    argument: Any
    result: Any = None


@dataclass(slots=True)
class _Count:
    """The branches of one gather that have not ended. Several may be done before the first of them is told."""

    left: int


class _Latch:
    def __init__(self, run: "EmbeddedRun") -> None:
        self._run = run
        self._waiters: list[asyncio.Future[None]] = []
        self._is_open = False

    def open(self) -> None:
        self._is_open = True
        for waiter in self._waiters:
            self._run.go_on(waiter)

    async def passed(self) -> None:
        if not self._is_open:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await self._run.stand(waiter)


class EmbeddedRun:
    """The `Run` of the embedded engine (see `shared.jobs.run`)."""

    def __init__(self, claim: Claim, definition: JobDef, tools: Any, attempts: Attempts, hub: Hub) -> None:
        self.job_id = claim.job_id
        self.attempt = claim.attempt
        self._claim = claim
        self._definition = definition
        self._tools = tools
        self._attempts = attempts
        self._hub = hub
        self._undoing = claim.phase == "undo"
        self._begun: dict[str, _Done] = {}
        self._keys: set[str] = set()
        self._reports: list[asyncio.Future[None]] = []  # of successes
        self._branches = 1
        self._resting: list[asyncio.Future[None]] = []
        self._standing: list[asyncio.Future[None]] = []  # before latches

    # ---- what a job function awaits

    async def step(self, definition: StepDef, argument: Any = None, *, key: str | None = None) -> Any:
        name = self._claim_key(key or definition.key)
        memory = self._claim.steps.get(name)
        done = _Done(definition, name, argument)
        if memory is not None and memory.begun:
            self._begun[name] = done
        if memory is not None and memory.state == "succeeded":
            done.result = definition.result.validate_python(memory.result)
            return done.result
        if memory is not None and memory.state == "failed" and memory.error is not None:
            raise StepFailed(name, memory.error["code"], memory.error["message"])
        self._refuse_when_undoing()
        if memory is not None and memory.state == "running" and memory.tries >= definition.retry.attempts + CRASHES:
            return await self._give_up(definition, name)
        done.result = await self._try(done)
        return done.result

    async def gather(self, *branches: Awaitable[Any]) -> list[Any]:
        tasks = [asyncio.ensure_future(branch) for branch in branches]
        self._branches += max(len(tasks) - 1, 0)
        working = _Count(len(tasks))
        for task in tasks:
            task.add_done_callback(partial(self._branch_ended, working))
        try:
            if tasks:
                await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return _results(tasks)

    def latch(self) -> Latch:
        return _Latch(self)

    async def sleep(self, seconds: float, *, key: str) -> None:
        await self._wait(key, "Wait", seconds, None)

    async def wait_event(self, name: str, *, key: str, timeout: float | None = None) -> Any:
        return await self._wait(key, f"Wait for {name}", timeout, name)

    async def reported(self) -> None:
        """Until all that steps have returned is recorded. Raises `StaleFence` when that was refused."""
        if self._reports:
            await asyncio.wait(self._reports)
        for report in self._reports:
            report.result()

    # ---- going forward

    async def _try(self, done: _Done) -> Any:
        definition = done.definition
        while True:
            left = await self._backoff_left(done.key)
            if left > 0:
                await self._rest(left, frozenset(), asyncio.Event())
            begun = await self._begin(done.key, definition.title, definition.weight)
            self._begun[done.key] = done
            if isinstance(begun, Remembered):
                return definition.result.validate_python(begun.result)
            try:
                result = await self._attempt(definition, done.key, done.argument, begun)
            except StaleFence:
                raise
            except asyncio.CancelledError as error:
                if is_being_cancelled():
                    raise
                await self._record_failure(definition, done.key, begun, error)  # it came from within the step
                continue
            except Exception as error:  # every other fault of a step ends in the ledger: tried again, or failed
                await self._record_failure(definition, done.key, begun, error)
                continue
            return result

    async def _begin(self, key: str, title: str, weight: float) -> Begun | Remembered:
        return await self._attempts.begin(self.job_id, self._claim.fence, key, title, weight)

    async def _attempt(self, definition: StepDef, key: str, argument: Any, begun: Begun) -> Any:
        context = StepContext(self.job_id, key, begun.number, self._tools, partial(self._write_progress, begun))
        with self._seen(definition, key, begun.number):
            try:
                async with asyncio.timeout(definition.retry.timeout):
                    result = await definition.fn(context, argument)
            finally:
                context.close()
            data = small_enough(definition.dump(result), "step")
            written = self._attempts.succeed(self.job_id, self._claim.fence, key, begun.token, data)
            report = asyncio.ensure_future(written)  # not waited for: what begins next is recorded with it, or after it
            report.add_done_callback(_look_at)
            self._reports.append(report)
        return definition.result.validate_python(data)  # the same as when it is remembered

    async def _record_failure(self, definition: StepDef, key: str, begun: Begun, error: BaseException) -> None:
        """Write the failure down; return when the step is to be tried again, else raise `StepFailed`."""
        failure = failure_of_step(self.job_id, key, definition, begun.tries, error)
        await self._attempts.fail(
            self.job_id, self._claim.fence, key, begun.token, failure.body,
            state="pending" if failure.again else "failed", after=failure.after,
        )  # fmt: skip
        if not failure.again:
            raise StepFailed(key, failure.body["code"], failure.body["message"]) from error

    async def _give_up(self, definition: StepDef, key: str) -> Any:
        message = LOST.format("step")
        begun = await self._begin(key, definition.title, definition.weight)
        if isinstance(begun, Begun):
            body = error_body("worker_lost", message, key, definition)
            await self._attempts.fail(self.job_id, self._claim.fence, key, begun.token, body)
        raise StepFailed(key, "worker_lost", message)

    async def _backoff_left(self, key: str) -> float:
        memory = self._claim.steps.get(key)
        known = key in self._begun or (memory is not None and memory.attempt > 0)
        if not known:
            return 0.0
        return await self._attempts.backoff_left(self.job_id, key)

    async def _write_progress(self, begun: Begun, context: StepContext) -> None:
        await self._attempts.progress(
            self.job_id, self._claim.fence, context.key, begun.token, context.percent, context.message
        )

    # ---- waiting

    async def _wait(self, key: str, title: str, seconds: float | None, event: str | None) -> Any:
        """A step that is only a wait: for time, for an event, or for an event with a time limit."""
        name = self._claim_key(key)
        memory = self._claim.steps.get(name)
        if memory is not None and memory.state == "succeeded":
            return memory.result
        if memory is not None and memory.state == "failed" and memory.error is not None:
            raise StepFailed(name, memory.error["code"], memory.error["message"])
        self._refuse_when_undoing()
        begun = await self._begin(name, title, 0.0)
        if isinstance(begun, Remembered):
            return begun.result
        fence = self._claim.fence
        while True:
            sent = self._hub.watch(signal_name(self.job_id))
            if event is not None:
                taken, data = await self._attempts.take_signal(self.job_id, name, event)
                if taken:
                    await self._attempts.succeed(self.job_id, fence, name, begun.token, data)
                    return data
            left = await self._attempts.wait(self.job_id, fence, name, seconds)
            if left is not None and left <= 0:
                return await self._wait_over(name, begun, event)
            await self._rest(left, frozenset([event] if event else []), sent)

    async def _wait_over(self, key: str, begun: Begun, event: str | None) -> None:
        if event is None:
            await self._attempts.succeed(self.job_id, self._claim.fence, key, begun.token, None)
            return
        message = f"The event {event} did not come in time."
        body = error_body("timed_out", message, key)
        await self._attempts.fail(self.job_id, self._claim.fence, key, begun.token, body)
        raise StepFailed(key, "timed_out", message)

    async def _rest(self, seconds: float | None, names: frozenset[str], sent: asyncio.Event) -> None:
        """Wait in the slot when it is short or other branches work; give the slot up (`Park`) when all branches wait."""
        if seconds is not None and seconds <= SHORT_WAIT:
            await asyncio.sleep(seconds)
            return
        everyone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resting.append(everyone)
        self._park_when_all_rest()
        signal = asyncio.ensure_future(sent.wait())
        began = time.monotonic()
        waits: set[asyncio.Future[Any]] = {everyone, signal}
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            signal.cancel()
            if everyone in self._resting:
                self._resting.remove(everyone)
        if everyone.done():
            raise Park(None if seconds is None else max(seconds - (time.monotonic() - began), 0.0), names)

    async def stand(self, waiter: "asyncio.Future[None]") -> None:
        """Wait before a latch: the branch does not work meanwhile."""
        self._standing.append(waiter)
        self._branches -= 1
        self._park_when_all_rest()
        await waiter

    def go_on(self, waiter: "asyncio.Future[None]") -> None:
        """The latch is open."""
        if waiter in self._standing:
            self._standing.remove(waiter)
            self._branches += 1
            if not waiter.done():  # else it is being cancelled
                waiter.set_result(None)

    def _branch_ended(self, working: _Count, _task: object) -> None:
        working.left -= 1
        if working.left:  # with the last one, the branch that gathered goes on
            self._branches -= 1
            self._park_when_all_rest()

    def _park_when_all_rest(self) -> None:
        if len(self._resting) < self._branches or not (self._resting or self._standing):
            return
        why = Park(None, frozenset()) if self._resting else NeverOpened()
        for waiter in self._resting:
            waiter.set_result(None)
        for waiter in self._standing:
            if not waiter.done():
                waiter.set_exception(why)
        self._branches += len(self._standing)
        self._resting, self._standing = [], []

    # ---- taking back

    def undo_from_here(self) -> None:
        self._undoing = True

    async def undo(self) -> list[dict[str, Any]]:
        """Undo what has begun, last first. Returns what could not be undone."""
        left = unreached(self._definition, self._claim.steps, self._begun)
        if left:
            return left  # what was done before them may still be in use by them
        await self._refresh_results()
        for done in reversed(list(self._begun.values())):
            if done.definition.undo is None:
                continue
            if await self._attempts.begin_undo(self.job_id, self._claim.fence, done.key) > CRASHES:
                error: Exception | None = Permanent("worker_lost", LOST.format("undo"))
            else:
                error = await self._undo_one(done)
            if error is None:
                await self._attempts.undone(self.job_id, self._claim.fence, done.key)
            else:
                code, message = describe(error)
                body = {**error_body("undo_failed", f"{done.definition.title}: {message}", done.key), "cause": code}
                await self._attempts.undo_failed(self.job_id, self._claim.fence, done.key, body)
                left.append(body)
                break  # what was done before it may still be in use by what is left
        return left

    async def _refresh_results(self) -> None:
        """A step may have ended in the moment in which it was cut off: then its result is in the ledger only."""
        results = await self._attempts.results(self.job_id)
        for done in self._begun.values():
            if done.result is None and results.get(done.key) is not None:
                done.result = done.definition.result.validate_python(results[done.key])

    async def _undo_one(self, done: _Done) -> Exception | None:
        context = StepContext(self.job_id, done.key, 0, self._tools)
        seen = partial(self._seen, done.definition, done.key, undo=True)
        return await undo_step(done.definition, context, done.argument, done.result, seen)

    # ----

    def _seen(self, step: StepDef, key: str, attempt: int, *, undo: bool = False) -> AbstractContextManager[None]:
        claim = self._claim
        return step_span(
            self.job_id, claim.kind, key, attempt, claim.traceparent, step=step.key, workflow=claim.topic, undo=undo
        )

    def _claim_key(self, key: str) -> str:
        if key in self._keys:
            raise ValueError(f"two steps of one run have the key {key!r}")
        self._keys.add(key)
        return key

    def _refuse_when_undoing(self) -> None:
        if self._undoing:
            raise CancelRequested(str(self.job_id))


def _look_at(report: "asyncio.Future[None]") -> None:
    """Its refusal need not be told by who forgets it: the run learns of that by its next step, or at its end."""
    if not report.cancelled():
        report.exception()


def _results(tasks: Sequence["asyncio.Future[Any]"]) -> list[Any]:
    """The results in order; else, of what went wrong, the one that decides what happens to the run."""
    errors = [error for task in tasks if (error := task.exception()) is not None]
    for kind in (StaleFence, CancelRequested):
        for error in errors:
            if isinstance(error, kind):
                raise error
    parks = [error for error in errors if isinstance(error, Park)]
    if parks:
        seconds = [park.seconds for park in parks if park.seconds is not None]
        raise Park(min(seconds, default=None), frozenset().union(*(park.names for park in parks)))
    if errors:
        raise errors[0]
    return [task.result() for task in tasks]

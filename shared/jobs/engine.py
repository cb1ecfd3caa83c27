"""The embedded engine: claims runs from the ledger and drives them in this process. More processes may join.

It knows no job: what a run does is in `shared.jobs.driver`, who has which run in `shared.jobs.claims`.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.db.engine import Database
from shared.jobs.attempts import Attempts, CancelRequested
from shared.jobs.claims import OVERDUE, Claim, Claims
from shared.jobs.declare import JobDef, Registry
from shared.jobs.driver import EmbeddedRun, Park, describe, error_body, small_enough
from shared.jobs.heartbeat import Heartbeat
from shared.jobs.hub import CANCEL, WORK
from shared.jobs.ledger import REVOKED, Ledger, StaleFence
from shared.jobs.run import StepFailed
from shared.jobs.stored import json_text

POLL_SECONDS = 2.0
FAULT_SECONDS = 1.0  # before a run that met a fault is claimed again
STOP_SECONDS = 1.0  # for cancelled steps to clean up
LEAVE_SECONDS = 0.7  # to give up the runs when the process ends; else the lease ends by itself

log = structlog.get_logger(__name__)


class Overdue(Exception):
    """The job is past its deadline."""


@dataclass(slots=True, eq=False)
class _Driven:
    """A claimed run in this process. Only its forward work is interrupted by a cancel: later it finds that in the ledger."""

    claim: Claim
    task: asyncio.Task[None] | None = None
    interruptible: bool = True
    interrupted: bool = False
    stopped: bool = False
    clean: bool = False  # whether the ledger knows how it ended
    parked: bool = False


class EmbeddedEngine:
    """Runs the jobs of `registry`. `lease` is how many seconds a process may be silent before its runs go to another."""

    def __init__(self, database: Database, ledger: Ledger, registry: Registry, *, lease: float = 8.0) -> None:
        self._database = database
        self._ledger = ledger
        self._registry = registry
        self._lease = lease
        self._attempts = Attempts(database, ledger.hub)
        self._runs: dict[UUID, _Driven] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._doubtful = False  # the ledger may think that we have runs which we have not
        self._joined = asyncio.Event()
        self._begin_as(uuid4())

    def _begin_as(self, process: UUID) -> None:
        loop_calls = self._from_thread
        self.claims = Claims(self._database, self._ledger, process, self._lease)
        self._heartbeat = Heartbeat(
            self._database.url, process, self._lease,
            cancelled=lambda ids: loop_calls(self._interrupt, ids), lost=lambda: loop_calls(self._lost),
        )  # fmt: skip

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.claims.register(self._registry.announced())
        self._heartbeat.start()
        self._joined.set()
        self._tasks = [
            asyncio.create_task(self._claim_forever(), name="engine-claims"),
            asyncio.create_task(self._reap_forever(), name="engine-reaper"),
            asyncio.create_task(self._watch_cancels(), name="engine-cancels"),
        ]

    async def close(self) -> None:
        """Stop the runs where they are and give them up, so that the next process goes on with them at once."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stop_runs()
        self._heartbeat.stop()
        with contextlib.suppress(Exception):  # the database may be gone already: the lease ends by itself
            async with asyncio.timeout(LEAVE_SECONDS):
                await self.claims.leave()
                self._ledger.hub.publish(WORK)
        await self._attempts.close()

    # ---- loops; each goes on after a fault, for the database may come back

    async def _claim_forever(self) -> None:
        while True:
            await self._joined.wait()
            due = POLL_SECONDS
            work = self._ledger.hub.watch(WORK)
            try:
                await self._claim()  # all that is due and has a slot: more is news, or an end, and wakes us
                next_due = await self.claims.next_due(list(self._registry.announced()))
                due = POLL_SECONDS if next_due is None else min(next_due, POLL_SECONDS)
            except Exception as error:
                self._doubtful = True  # the claim may have been committed, and its answer lost
                log.warning("claim_failed", error=f"{type(error).__name__}: {error}"[:300])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(due, 0.005)):
                    await work.wait()

    async def _claim(self) -> None:
        claims = self.claims
        if self._doubtful:
            await claims.release_others(list(self._runs), delay=FAULT_SECONDS)
            self._doubtful = False
        while claim := await claims.take(self._free_slots()):
            if claims is not self.claims or not self._joined.is_set():
                return  # taken under a name that is no more: the reaper frees it
            self._launch(claim)

    async def _reap_forever(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if await self.claims.reap():
                    self._ledger.hub.publish(WORK)
            except Exception as error:
                log.warning("reap_failed", error=type(error).__name__)

    async def _watch_cancels(self) -> None:
        while True:
            changed = self._ledger.hub.watch(CANCEL)
            try:
                async with self._database.statement() as connection:
                    rows = await connection.execute(
                        text("SELECT id FROM jobs.job WHERE worker = :me AND state = 'cancelling'"),
                        {"me": self.claims.process},
                    )
                    self._interrupt([row.id for row in rows])
            except Exception as error:  # the heartbeat brings the same news within seconds
                log.warning("cancel_check_failed", error=type(error).__name__)
            await changed.wait()

    def _free_slots(self) -> dict[str, tuple[list[int], int]]:
        busy = Counter(run.claim.kind for run in self._runs.values())
        slots: dict[str, tuple[list[int], int]] = {}
        for definition in self._registry.all():
            versions, most = slots.get(definition.kind, ([], 0))
            slots[definition.kind] = ([*versions, definition.version], max(most, definition.slots))
        return {kind: (versions, most - busy[kind]) for kind, (versions, most) in slots.items()}

    # ---- one run

    def _launch(self, claim: Claim) -> None:
        run = _Driven(claim)
        run.task = asyncio.create_task(self._drive(run), name=f"job-{claim.kind}-{claim.job_id}")
        self._runs[claim.job_id] = run
        run.task.add_done_callback(lambda _: self._ended(run))

    def _ended(self, run: _Driven) -> None:
        was_full = self._free_slots()[run.claim.kind][1] <= 0
        if self._runs.get(run.claim.job_id) is run:
            del self._runs[run.claim.job_id]
        if not run.clean:
            self._doubtful = True
        if was_full or run.parked or not run.clean:
            self._ledger.hub.wake(WORK)

    async def _drive(self, driven: _Driven) -> None:
        claim = driven.claim
        try:
            definition, tools = self._registry.find(claim.kind, claim.version)
            run = EmbeddedRun(claim, definition, tools, self._attempts, self._ledger.hub)
            await self._go(driven, definition, run)
            driven.clean = True
        except StaleFence:
            log.info("run_refused", job=str(claim.job_id), fence=claim.fence)
        except Exception:  # a fault of ours or of the database: the run is given up and claimed again
            log.exception("run_fault", job=str(claim.job_id))

    async def _go(self, driven: _Driven, definition: JobDef, run: EmbeddedRun) -> None:
        end = await self._until_end(driven, definition, run)
        try:
            await end()
        except CancelRequested:  # in the very moment of its end
            await self._undo(driven.claim, run, None)

    async def _until_end(self, driven: _Driven, definition: JobDef, run: EmbeddedRun) -> Callable[[], Awaitable[None]]:
        """Drive the job's function as far as it goes; returns what is to be done then."""
        claim = driven.claim
        try:
            result = await self._forward(claim, definition, run)
        except Park as park:
            driven.parked = True
            return partial(self._park, claim, park)
        except CancelRequested:
            return partial(self._undo, claim, run, _first_failure(claim.error))
        except StaleFence:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if driven.stopped or not driven.interrupted or task is None:
                raise
            task.uncancel()
            return partial(self._undo, claim, run, None)
        except Exception as error:  # what a job raises is its failure; it ends in the ledger
            return partial(self._fail, claim, definition, run, error)
        finally:
            driven.interruptible = False
        return partial(self._set_state, claim, "succeeded", "result = CAST(:result AS jsonb)", result=result)

    async def _forward(self, claim: Claim, definition: JobDef, run: EmbeddedRun) -> Any:
        """The job's result as JSON."""
        if claim.phase == "undo":
            run.undo_from_here()
            with contextlib.suppress(Exception):  # whatever it raises, it has come as far as it can
                await definition.fn(run, definition.input.validate_python(claim.input))
            raise CancelRequested(str(claim.job_id))
        argument = definition.input.validate_python(claim.input)
        if claim.seconds_left is None:
            result = await definition.fn(run, argument)
        elif claim.seconds_left <= 0:
            raise Overdue(OVERDUE)
        else:
            result = await _in_time(definition.fn(run, argument), claim.seconds_left)
        return json_text(small_enough(definition.result.dump_python(result, mode="json"), "job"))

    async def _fail(self, claim: Claim, definition: JobDef, run: EmbeddedRun, error: Exception) -> None:
        body = _failure(claim, error)
        state = "running" if definition.undo_on_failure else "failed"
        changes = "error = CAST(:error AS jsonb)" + (", phase = 'undo'" if definition.undo_on_failure else "")
        await self._set_state(claim, state, changes, error=json_text(body))
        if definition.undo_on_failure:
            await self._undo(claim, run, body)

    async def _undo(self, claim: Claim, run: EmbeddedRun, failure: dict[str, Any] | None) -> None:
        """Take back what was done. A failure that led here stays the job's error; without one it was cancelled."""
        run.undo_from_here()
        left = await run.undo()
        async with self._database.transaction() as session:
            statement = text("""SELECT cancel_requested_at IS NOT NULL AS asked, error->>'code' AS code, error
                                  FROM jobs.job WHERE id = :id FOR UPDATE""")
            row = (await session.execute(statement, {"id": claim.job_id})).one()
            reason = row.error if row.code == REVOKED else None
            state, error = ("cancelled", reason) if row.asked else ("failed", failure)
            if left:
                cause = failure or left[0]["cause"]
                state, error = "cleanup_required", {**left[0], "left": [one["step"] for one in left], "cause": cause}
            await self._ledger.transition(
                session, claim.job_id, state, fence=claim.fence,
                set_="error = CAST(:error AS jsonb)", values={"error": json_text(error) if error else None},
            )  # fmt: skip

    async def _park(self, claim: Claim, park: Park) -> None:
        changes = """worker = NULL, run_at = CASE
            WHEN EXISTS (SELECT 1 FROM jobs.signal s WHERE s.job_id = :job AND s.taken_by IS NULL AND s.name = ANY(:names))
            THEN clock_timestamp()
            ELSE least(coalesce(clock_timestamp() + make_interval(secs => :seconds), 'infinity'), deadline) END"""
        async with self._database.transaction() as session:
            # The lock comes first: an event that is sent just now is either seen here, or wakes the parked run.
            await session.execute(text("SELECT 1 FROM jobs.job WHERE id = :id FOR UPDATE"), {"id": claim.job_id})
            await self._change(session, claim, "waiting", changes, names=list(park.names), seconds=park.seconds)

    async def _set_state(self, claim: Claim, state: str, changes: str, **values: Any) -> None:
        async with self._database.transaction() as session:
            await self._change(session, claim, state, changes, **values)

    async def _change(self, session: AsyncSession, claim: Claim, state: str, changes: str, **values: Any) -> None:
        """Raises `CancelRequested` when the job is to be undone by now, `StaleFence` when it is somebody else's."""
        try:
            await self._ledger.transition(
                session, claim.job_id, state, fence=claim.fence, forward=True, set_=changes, values=values
            )
        except StaleFence:
            statement = text("SELECT 1 FROM jobs.job WHERE id = :id AND fence = :fence AND phase = 'undo'")
            if (await session.execute(statement, {"id": claim.job_id, "fence": claim.fence})).one_or_none() is None:
                raise
            raise CancelRequested(str(claim.job_id)) from None

    # ---- from the heartbeat's thread

    def _from_thread(self, call: Any, *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)

    def _interrupt(self, job_ids: list[UUID]) -> None:
        """Stop the forward work of runs that are to be undone; a run in its undo is left alone."""
        for job_id in job_ids:
            run = self._runs.get(job_id)
            if run is not None and run.task is not None and run.interruptible and run.claim.phase == "forward":
                run.interruptible, run.interrupted = False, True
                run.task.cancel()

    def _lost(self) -> None:
        """Another process has our runs: stop ours, come back under a new name."""
        if not self._closing:
            log.warning("lease_lost", process=str(self.claims.process))
            self._joined.clear()
            self._tasks.append(asyncio.create_task(self._rejoin(), name="engine-rejoin"))

    async def _rejoin(self) -> None:
        await self._stop_runs()
        self._begin_as(uuid4())
        while True:
            try:
                await self.claims.register(self._registry.announced())
            except Exception as error:  # the database is away: try until it is back
                log.warning("register_failed", error=type(error).__name__)
                await asyncio.sleep(1.0)
            else:
                break
        self._heartbeat.start()
        self._joined.set()

    async def _stop_runs(self) -> None:
        """Stop them where they are. A step that does not let itself be stopped is left behind: its report is refused."""
        runs = list(self._runs.values())
        for run in runs:
            run.stopped = True
            if run.task is not None:
                run.task.cancel()
        tasks = [run.task for run in runs if run.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)


async def _in_time(work: Awaitable[Any], seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds) as limit:
            return await work
    except TimeoutError as error:
        if limit.expired():
            raise Overdue(OVERDUE) from error
        raise


def _first_failure(error: dict[str, Any] | None) -> dict[str, Any] | None:
    """What led to the undo: the cause that a failed undo of before has kept, or the error itself."""
    if error is not None and error["code"] == "undo_failed":
        return error["cause"] if isinstance(error.get("cause"), dict) else None
    return error


def _failure(claim: Claim, error: Exception) -> dict[str, Any]:
    if isinstance(error, StepFailed):
        return error_body(error.code, error.message, error.key)
    if isinstance(error, Overdue):
        return error_body("deadline_exceeded", str(error), None)
    code, message = describe(error)
    if code == "internal":
        log.error("job_fault", job=str(claim.job_id), kind=claim.kind, exc_info=error)
    return error_body(code, message, None)

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

from shared.db.engine import Database
from shared.jobs.attempts import Attempts, CancelRequested
from shared.jobs.claims import OVERDUE, Claim, Claims
from shared.jobs.declare import JobDef, Registry
from shared.jobs.driver import EmbeddedRun, Park, small_enough
from shared.jobs.endings import Endings, Overdue, failure_of, first_failure
from shared.jobs.heartbeat import Heartbeat
from shared.jobs.hub import CANCEL, WORK
from shared.jobs.ledger import Ledger, StaleFence
from shared.telemetry.metrics import LEASES_LOST
from shared.telemetry.work import run_ends, run_span

POLL_SECONDS = 2.0
LOOPS = 3  # tasks that run from the start to the end
FAULT_SECONDS = 1.0  # before a run that met a fault is claimed again
STOP_SECONDS = 1.0  # for cancelled steps to clean up
LEAVE_SECONDS = 0.7  # to give up the runs when the process ends; else the lease ends by itself

log = structlog.get_logger(__name__)


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
        self._attempts = Attempts(database.url, ledger.hub)
        self._endings = Endings(database, ledger)
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

    @property
    def is_joined(self) -> bool:
        """Whether it claims runs: not before its start, and not while it comes back after it was taken for dead."""
        return self._joined.is_set() and not self._closing

    def dead(self) -> list[str]:
        """Names of what must run until `close`, and has ended."""
        if self._closing or not self._tasks:
            return []
        ended = [task.get_name() for task in self._tasks[:LOOPS] if task.done()]
        return ended if self._heartbeat.is_well else [*ended, "engine-heartbeat"]

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
        with run_span(claim.job_id, claim.kind, claim.attempt, claim.traceparent, workflow=claim.topic):
            try:
                definition, tools = self._registry.find(claim.kind, claim.version)
                run = EmbeddedRun(claim, definition, tools, self._attempts, self._ledger.hub)
                await self._go(driven, definition, run)
                driven.clean = True
            except StaleFence:
                run_ends(StaleFence.outcome)
                log.info("run_refused", job=str(claim.job_id), fence=claim.fence)
            except Exception:  # a fault of ours or of the database: the run is given up and claimed again
                run_ends("fault")
                log.exception("run_fault", job=str(claim.job_id))

    async def _go(self, driven: _Driven, definition: JobDef, run: EmbeddedRun) -> None:
        end = await self._until_end(driven, definition, run)
        await run.reported()
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
            return partial(self._endings.park, claim.job_id, claim.fence, park.seconds, list(park.names))
        except CancelRequested:
            return partial(self._undo, claim, run, first_failure(claim.error))
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
        return partial(self._endings.succeed, claim.job_id, claim.fence, result)

    async def _forward(self, claim: Claim, definition: JobDef, run: EmbeddedRun) -> Any:
        """The job's result as plain data."""
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
        return small_enough(definition.result.dump_python(result, mode="json"), "job")

    async def _fail(self, claim: Claim, definition: JobDef, run: EmbeddedRun, error: Exception) -> None:
        body = failure_of(claim.job_id, claim.kind, error)
        await self._endings.fail(claim.job_id, claim.fence, body, undo=definition.undo_on_failure)
        if definition.undo_on_failure:
            await self._undo(claim, run, body)

    async def _undo(self, claim: Claim, run: EmbeddedRun, failure: dict[str, Any] | None) -> None:
        run.undo_from_here()
        await self._endings.undone(claim.job_id, claim.fence, await run.undo(), failure)

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
            LEASES_LOST.inc()
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

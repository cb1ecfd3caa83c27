"""The embedded engine: claims runs from the ledger and drives them in this process. More processes may join.

It knows no job: what a run does is in `shared.jobs.driver`, who has which run in `shared.jobs.claims`.
"""

import asyncio
import contextlib
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import structlog
from pydantic_core import to_json
from sqlalchemy import text

from shared.db.engine import Database
from shared.jobs.attempts import Attempts, CancelRequested
from shared.jobs.claims import Claim, Claims
from shared.jobs.declare import JobDef, Registry
from shared.jobs.driver import EmbeddedRun, Park, describe, error_body
from shared.jobs.heartbeat import Heartbeat
from shared.jobs.hub import CANCEL, WORK
from shared.jobs.ledger import Ledger, StaleFence
from shared.jobs.run import StepFailed

POLL_SECONDS = 2.0

log = structlog.get_logger(__name__)


class Overdue(Exception):
    """The job is past its deadline."""


class EmbeddedEngine:
    """Runs the jobs of `registry`. `lease` is how many seconds a process may be silent before its runs go to another."""

    def __init__(self, database: Database, ledger: Ledger, registry: Registry, *, lease: float = 8.0) -> None:
        self._database = database
        self._ledger = ledger
        self._registry = registry
        self._lease = lease
        self._attempts = Attempts(database, ledger.hub)
        self._runs: dict[UUID, tuple[Claim, asyncio.Task[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
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
            await self.claims.leave()

    # ---- loops; each goes on after a fault, for the database may come back

    async def _claim_forever(self) -> None:
        while True:
            due = POLL_SECONDS
            work = self._ledger.hub.watch(WORK)
            try:
                claims = await self.claims.take(self._free_slots())
                for claim in claims:
                    self._launch(claim)
                if claims:
                    continue
                next_due = await self.claims.next_due(list(self._registry.announced()))
                due = POLL_SECONDS if next_due is None else min(next_due, POLL_SECONDS)
            except Exception as error:
                log.warning("claim_failed", error=f"{type(error).__name__}: {error}"[:300])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(due, 0.005)):
                    await work.wait()

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
            await self._ledger.hub.watch(CANCEL).wait()
            try:
                async with self._database.statement() as connection:
                    rows = await connection.execute(
                        text("SELECT id FROM jobs.job WHERE worker = :me AND state = 'cancelling'"),
                        {"me": self.claims.process},
                    )
                    self._interrupt([row.id for row in rows])
            except Exception as error:  # the heartbeat brings the same news within seconds
                log.warning("cancel_check_failed", error=type(error).__name__)

    def _free_slots(self) -> dict[str, tuple[int, int]]:
        busy = Counter(claim.kind for claim, _ in self._runs.values())
        slots: dict[str, tuple[int, int]] = {}
        for definition in self._registry.all():
            version = max(definition.version, slots.get(definition.kind, (0, 0))[0])
            slots[definition.kind] = (version, definition.slots - busy[definition.kind])
        return slots

    # ---- one run

    def _launch(self, claim: Claim) -> None:
        task = asyncio.create_task(self._drive(claim), name=f"job-{claim.kind}-{claim.job_id}")
        self._runs[claim.job_id] = (claim, task)
        task.add_done_callback(lambda _: self._ended(claim))

    def _ended(self, claim: Claim) -> None:
        current = self._runs.get(claim.job_id)
        if current is not None and current[0] is claim:
            del self._runs[claim.job_id]
        self._ledger.hub.publish(WORK)

    async def _drive(self, claim: Claim) -> None:
        try:
            definition, tools = self._registry.find(claim.kind, claim.version)
            run = EmbeddedRun(claim, definition, tools, self._attempts, self._ledger.hub)
            await self._go(claim, definition, run)
        except StaleFence:
            log.info("run_refused", job=str(claim.job_id), fence=claim.fence)
        except Exception:  # a fault of ours or of the database: the run is given up and claimed again
            log.exception("run_fault", job=str(claim.job_id))
            await asyncio.sleep(1.0)
            with contextlib.suppress(Exception):
                await self.claims.release([claim.job_id])

    async def _go(self, claim: Claim, definition: JobDef, run: EmbeddedRun) -> None:
        try:
            result = await self._forward(claim, definition, run)
        except Park as park:
            await self._park(claim, park)
        except CancelRequested:
            await self._undo(claim, run, claim.error)
        except asyncio.CancelledError:
            if self._closing or not await self._is_cancelling(claim):
                raise
            await self._undo(claim, run, None)
        except Exception as error:  # what a job raises is its failure; it ends in the ledger
            await self._fail(claim, definition, run, error)
        else:
            await self._finish(claim, run, definition.result.dump_python(result, mode="json"))

    async def _forward(self, claim: Claim, definition: JobDef, run: EmbeddedRun) -> Any:
        argument = definition.input.validate_python(claim.input)
        if claim.phase == "undo":
            run.undo_from_here()
            with contextlib.suppress(StepFailed):
                await definition.fn(run, argument)
            raise CancelRequested(str(claim.job_id))
        if claim.seconds_left is None:
            return await definition.fn(run, argument)
        try:
            async with asyncio.timeout(max(claim.seconds_left, 0)) as limit:
                return await definition.fn(run, argument)
        except TimeoutError as error:
            if limit.expired():
                raise Overdue("The job took longer than it may.") from error
            raise

    async def _finish(self, claim: Claim, run: EmbeddedRun, result: Any) -> None:
        try:
            await self._set_state(claim, "succeeded", "result = CAST(:result AS jsonb)", only_forward=True,
                                  result=to_json(result).decode())  # fmt: skip
        except StaleFence:
            if not await self._is_cancelling(claim):
                raise
            await self._undo(claim, run, None)

    async def _fail(self, claim: Claim, definition: JobDef, run: EmbeddedRun, error: Exception) -> None:
        body = _failure(claim, error)
        if not definition.undo_on_failure:
            await self._set_state(claim, "failed", "error = CAST(:error AS jsonb)", error=to_json(body).decode())
            return
        changes = "phase = 'undo', error = CAST(:error AS jsonb)"
        await self._set_state(claim, "running", changes, error=to_json(body).decode())
        await self._undo(claim, run, body)

    async def _undo(self, claim: Claim, run: EmbeddedRun, failure: dict[str, Any] | None) -> None:
        """Take back what was done. A failure that led here stays the job's error; without one it was cancelled."""
        run.undo_from_here()
        left = await run.undo()
        if left:
            body = {**left[0], "left": [item["step"] for item in left], "cause": failure or left[0]["cause"]}
            await self._set_state(
                claim, "cleanup_required", "error = CAST(:error AS jsonb)", error=to_json(body).decode()
            )
            return
        async with self._database.transaction() as session:
            asked = await session.scalar(
                text("SELECT cancel_requested_at IS NOT NULL FROM jobs.job WHERE id = :id"), {"id": claim.job_id}
            )
            error = None if asked else failure
            await session.execute(
                text("""UPDATE jobs.step SET state = CASE WHEN state = 'running' THEN 'cancelled' ELSE state END,
                               ended_at = coalesce(ended_at, clock_timestamp())
                         WHERE job_id = :id AND state IN ('running')"""),
                {"id": claim.job_id},
            )
            await self._ledger.transition(
                session, claim.job_id, "cancelled" if asked else "failed", fence=claim.fence,
                set_="error = CAST(:error AS jsonb)", values={"error": to_json(error).decode() if error else None},
            )  # fmt: skip

    async def _park(self, claim: Claim, park: Park) -> None:
        changes = """worker = NULL, run_at = CASE
            WHEN EXISTS (SELECT 1 FROM jobs.signal s WHERE s.job_id = :job AND s.taken_by IS NULL AND s.name = ANY(:names))
            THEN clock_timestamp()
            ELSE coalesce(clock_timestamp() + make_interval(secs => :seconds), 'infinity') END"""
        try:
            await self._set_state(
                claim, "waiting", changes, only_forward=True, names=list(park.names), seconds=park.seconds
            )
        except StaleFence:
            if not await self._is_cancelling(claim):
                raise
            await self.claims.release([claim.job_id])  # it was cancelled just now: claimed again, for its undo

    async def _set_state(
        self, claim: Claim, state: str, changes: str, *, only_forward: bool = False, **values: Any
    ) -> None:
        async with self._database.transaction() as session:
            if only_forward:
                await session.execute(text("SELECT 1 FROM jobs.job WHERE id = :id FOR UPDATE"), {"id": claim.job_id})
                phase = await session.scalar(text("SELECT phase FROM jobs.job WHERE id = :id"), {"id": claim.job_id})
                if phase != "forward":
                    raise StaleFence(str(claim.job_id))
            await self._ledger.transition(session, claim.job_id, state, fence=claim.fence, set_=changes, values=values)

    async def _is_cancelling(self, claim: Claim) -> bool:
        async with self._database.statement() as connection:
            row = (
                await connection.execute(text("SELECT fence, phase FROM jobs.job WHERE id = :id"), {"id": claim.job_id})
            ).one_or_none()
        return row is not None and row.fence == claim.fence and row.phase == "undo"

    # ---- from the heartbeat's thread

    def _from_thread(self, call: Any, *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)

    def _interrupt(self, job_ids: list[UUID]) -> None:
        """Stop the forward work of runs that are to be undone; a run in its undo is left alone."""
        for job_id in job_ids:
            claim, task = self._runs.get(job_id, (None, None))
            if claim is not None and task is not None and claim.phase == "forward":
                claim.phase = "undo"
                task.cancel()

    def _lost(self) -> None:
        """Another process has our runs: stop ours, come back under a new name."""
        if not self._closing:
            log.warning("lease_lost", process=str(self.claims.process))
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

    async def _stop_runs(self) -> None:
        tasks = [task for _, task in self._runs.values()]
        for claim, task in self._runs.values():
            claim.phase = "stopped"
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _failure(claim: Claim, error: Exception) -> dict[str, Any]:
    if isinstance(error, StepFailed):
        return error_body(error.code, error.message, error.key)
    if isinstance(error, Overdue):
        return error_body("deadline_exceeded", str(error), None)
    code, message = describe(error)
    if code == "internal":
        log.error("job_fault", job=str(claim.job_id), kind=claim.kind, exc_info=error)
    return error_body(code, message, None)

"""Which process has which run: registration, leases, claims, take-over. All time is the database's.

A process is alive while its row's lease lasts; a thread of its own renews it (`shared.jobs.heartbeat`). When it ends, the
reaper bumps the fence of the runs that it had, so that what it may still report is refused.
"""

import os
import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.db.engine import Database
from shared.jobs.ledger import Ledger
from shared.jobs.stored import json_text
from shared.telemetry.metrics import RUNS_REAPED

POSTPONED = 10.0  # seconds, for a job whose start met a fault
OVERDUE = "The job took longer than it may."


Slots = dict[str, tuple[list[int], int]]
"""`{kind: (versions, free slots)}`."""


@dataclass(slots=True)
class StepMemory:
    """What the ledger knows of a step when a run is claimed."""

    state: str
    attempt: int
    tries: int
    result: Any
    error: dict[str, Any] | None

    @property
    def begun(self) -> bool:
        return self.attempt > 0 and self.state not in ("undone", "skipped")

    @property
    def may_have_effects(self) -> bool:
        """Not so for one that a retry has set back: had it been left undone, its job would not have failed quietly."""
        return self.begun and (self.state != "pending" or self.tries > 0)


@dataclass(slots=True)
class Claim:
    """A run that this process has, with all that is needed to drive it."""

    job_id: UUID
    kind: str
    version: int
    fence: int
    attempt: int
    state: str
    phase: str
    input: Any
    error: dict[str, Any] | None
    seconds_left: float | None  # until the job's deadline
    topic: UUID | None = None
    traceparent: str | None = None
    steps: dict[str, StepMemory] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Process:
    """One that runs jobs: where it is, the versions that it knows of each kind, and the service of which it is a replica."""

    id: UUID
    host: str
    pid: int
    started: str
    kinds: dict[str, list[int]]
    service: str | None = None


def process_identity(pid: int) -> str:
    """The start time of a living process, which tells it from a later one with its pid. Empty where this cannot be known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def machine_identity() -> str:
    """Name, boot and pid namespace: where a pid means the same process. Containers may share all but the last."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


_TAKE = text("""
    WITH free AS (
        SELECT picked.id
          FROM unnest(CAST(:kinds AS text[]), CAST(:versions AS text[])) AS k(kind, versions)
         CROSS JOIN LATERAL (
            SELECT id FROM jobs.job
             WHERE kind = k.kind AND version = ANY(CAST(k.versions AS int[])) AND worker IS NULL
               AND run_at <= clock_timestamp() AND state IN ('pending', 'running', 'waiting', 'cancelling')
             ORDER BY run_at LIMIT 1 FOR UPDATE SKIP LOCKED) picked
         LIMIT 1)
    UPDATE jobs.job job
       SET worker = :process, fence = job.fence + 1, started_at = coalesce(job.started_at, clock_timestamp()),
           lease_until = clock_timestamp() + make_interval(secs => CAST(:lease AS float8))
      FROM free WHERE job.id = free.id
    RETURNING job.id, job.kind, job.version, job.fence, job.attempt, job.state, job.phase, job.input, job.error,
              job.topic, job.traceparent, extract(epoch FROM job.deadline - clock_timestamp()) AS seconds_left
""")

_BURY = text("DELETE FROM jobs.process WHERE lease_until < clock_timestamp()")

# Not "of those just buried": a process may have claimed in the very moment in which its lease ended.
_REAP = text("""
    UPDATE jobs.job SET worker = NULL, fence = fence + 1, run_at = clock_timestamp()
     WHERE worker IS NOT NULL AND CASE WHEN lease_until IS NULL
               THEN NOT EXISTS (SELECT 1 FROM jobs.process p WHERE p.id = job.worker)
               ELSE lease_until < clock_timestamp() END
    RETURNING id
""")

# A run that is given up in good order has not crashed: what its steps, or their undos, began does not count as a try.
_RELEASE = text("""
    WITH released AS (
        UPDATE jobs.job SET worker = NULL, fence = fence + 1, run_at = clock_timestamp() + make_interval(secs => :delay)
         WHERE worker = :process AND id <> ALL(:kept) RETURNING id)
    UPDATE jobs.step SET tries = CASE WHEN step.state = 'running' THEN greatest(tries - 1, 0) ELSE tries END,
                         undo_tries = greatest(undo_tries - 1, 0)
      FROM released WHERE step.job_id = released.id AND (step.state = 'running' OR step.undo_tries > 0)
""")

_OVERDUE = text("""
    SELECT id FROM jobs.job
     WHERE worker IS NULL AND state = 'pending' AND deadline < clock_timestamp() LIMIT 1 FOR UPDATE SKIP LOCKED
""")

_POSTPONE = text("""
    UPDATE jobs.job SET run_at = clock_timestamp() + make_interval(secs => :delay) WHERE id = :id AND worker IS NULL
""")

_STEPS = text("SELECT key, state, attempt, tries, result, error FROM jobs.step WHERE job_id = :id")


class Claims:
    """Claims of one process, which has a lease for all its runs; with `run_lease`, each run has its own, of so many seconds."""

    def __init__(
        self, database: Database, ledger: Ledger, process: UUID, lease_seconds: float, run_lease: float | None = None
    ) -> None:
        self._database = database
        self._ledger = ledger
        self.process = process
        self.lease_seconds = lease_seconds
        self._run_lease = run_lease

    async def register(self, kinds: dict[str, list[int]]) -> None:
        """Announce this process. Processes of this machine that are no more lose their leases at once."""
        pid = os.getpid()
        await self.announce(Process(self.process, machine_identity(), pid, process_identity(pid), kinds))
        await self.reap()

    async def announce(self, process: "Process") -> bool:
        """Add a process, or renew what is known of it. False: its id is that of another service's."""
        async with self._database.transaction() as session:
            rows = await session.execute(
                text("SELECT id, pid, started FROM jobs.process WHERE host = :host"), {"host": process.host}
            )
            gone = [row.id for row in rows if row.started and process_identity(row.pid) != row.started]
            if gone and process.host == machine_identity():  # of others nothing can be seen from here
                await session.execute(
                    text("UPDATE jobs.process SET lease_until = '-infinity' WHERE id = ANY(:ids)"), {"ids": gone}
                )
            added = await session.execute(
                text("""INSERT INTO jobs.process AS known (id, host, pid, started, kinds, service, lease_until)
                        VALUES (:id, :host, :pid, :started, CAST(:kinds AS jsonb), :service,
                                clock_timestamp() + make_interval(secs => :lease))
                        ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until, kinds = excluded.kinds
                         WHERE known.service IS NOT DISTINCT FROM excluded.service
                        RETURNING id"""),
                {"id": process.id, "host": process.host, "pid": process.pid, "started": process.started,
                 "kinds": json_text(process.kinds), "service": process.service, "lease": self.lease_seconds},
            )  # fmt: skip
            return added.one_or_none() is not None

    async def take(self, slots: Slots) -> Claim | None:
        """Claim one job that may run now; `slots` is `{kind: (versions that this process knows, free slots)}`.

        One, as each brings the locks of its topic and its hook's rows, which nobody may take in another order.
        """
        if not any(free > 0 for _, free in slots.values()):
            return None

        async def given(_session: AsyncSession) -> Slots:
            return slots

        return await self._take(given)

    async def _take(self, find_slots: Callable[[AsyncSession], Awaitable[Slots]]) -> Claim | None:
        row = None
        try:
            async with self._database.transaction() as session:
                found = await find_slots(session)
                wanted = [
                    (kind, f"{{{','.join(map(str, known))}}}") for kind, (known, free) in found.items() if free > 0
                ]
                if not wanted:
                    return None
                kinds, versions = (list(column) for column in zip(*wanted, strict=True))
                values = {"kinds": kinds, "versions": versions, "process": self.process, "lease": self._run_lease}
                row = (await session.execute(_TAKE, values)).one_or_none()
                return None if row is None else await self._claimed(session, row)
        except Exception:
            if row is not None:
                await self._postpone(row.id)
            raise

    async def _claimed(self, session: AsyncSession, row: Any) -> Claim:
        left = None if row.seconds_left is None else float(row.seconds_left)
        claim = Claim(
            row.id, row.kind, row.version, row.fence, row.attempt, row.state, row.phase, row.input, row.error, left,
            row.topic, row.traceparent,
        )  # fmt: skip
        if claim.state in ("pending", "waiting"):
            await self._ledger.transition(session, claim.job_id, "running", fence=claim.fence)
            claim.state = "running"
        for step in await session.execute(_STEPS, {"id": claim.job_id}):
            claim.steps[step.key] = StepMemory(step.state, step.attempt, step.tries, step.result, step.error)
        return claim

    async def _postpone(self, job_id: UUID) -> None:
        """A job whose start fails must not be in the way of the others."""
        async with self._database.statement() as connection:
            await connection.execute(_POSTPONE, {"id": job_id, "delay": POSTPONED})

    async def next_due(self, kinds: list[str]) -> float | None:
        """Seconds until something can be claimed that cannot yet."""
        async with self._database.statement() as connection:
            seconds = await connection.scalar(
                text("""SELECT extract(epoch FROM min(run_at) - clock_timestamp()) FROM jobs.job
                         WHERE kind = ANY(:kinds) AND worker IS NULL AND run_at > clock_timestamp()
                           AND state IN ('pending', 'running', 'waiting', 'cancelling') AND isfinite(run_at)"""),
                {"kinds": kinds},
            )
        return None if seconds is None else max(float(seconds), 0.0)

    async def release_others(self, kept: list[UUID], *, delay: float = 0.0) -> None:
        """Give up the runs of this process but for those that it knows of, so that anyone may go on with them."""
        async with self._database.statement() as connection:
            await connection.execute(_RELEASE, {"process": self.process, "kept": kept, "delay": delay})

    async def leave(self) -> None:
        """Give up all runs, and be no more."""
        await self.release_others([])
        async with self._database.statement() as connection:
            await connection.execute(text("DELETE FROM jobs.process WHERE id = :id"), {"id": self.process})

    async def reap(self) -> int:
        """Free the runs of processes whose lease has ended, and fail what is overdue. Returns how many were freed."""
        async with self._database.statement() as connection:
            await connection.execute(_BURY)
            freed = len((await connection.execute(_REAP)).all())
        RUNS_REAPED.inc(freed)
        await self._fail_overdue()
        return freed

    async def _fail_overdue(self) -> None:
        """Jobs past their deadline that nobody has begun. Those that run or wait end where they are driven."""
        error = json_text({"code": "deadline_exceeded", "message": OVERDUE, "step": None})
        while True:
            async with self._database.transaction() as session:
                job_id = await session.scalar(_OVERDUE)
                if job_id is None:
                    return
                changes = "error = CAST(:error AS jsonb)"
                await self._ledger.transition(session, job_id, "failed", set_=changes, values={"error": error})

    async def hold(self, name: str) -> int | None:
        """Take or keep a named duty: its epoch, or None while another living process has it."""
        statement = text("""
            INSERT INTO jobs.lease AS lease (name, holder) VALUES (:name, :me)
            ON CONFLICT (name) DO UPDATE
               SET holder = :me, epoch = CASE WHEN lease.holder = :me THEN lease.epoch ELSE lease.epoch + 1 END
             WHERE lease.holder = :me
                OR NOT EXISTS (SELECT 1 FROM jobs.process p WHERE p.id = lease.holder AND p.lease_until > clock_timestamp())
            RETURNING epoch""")
        async with self._database.statement() as connection:
            row = (await connection.execute(statement, {"name": name, "me": self.process})).one_or_none()
        return None if row is None else int(row.epoch)

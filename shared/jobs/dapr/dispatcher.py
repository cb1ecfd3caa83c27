"""Gives the runs that are due to the services that drive them, from the app. Several processes of the app may do so.

The ledger is the truth: a run is taken here as an embedded engine takes one, with a fence, and a lease of its own that
every report of its service renews. Where that ends, the run is given away again, and what the old workflow may
still report is refused. A workflow that is over or stale is made to be forgotten.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_DNS, UUID, uuid4, uuid5

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.db.engine import Database
from shared.jobs.claims import Claim, Claims, Process, Slots, machine_identity, process_identity
from shared.jobs.dapr.ports import Memory, RunOrder, RunsPort, instance_id
from shared.jobs.declare import JobDef
from shared.jobs.hub import WORK
from shared.jobs.ledger import Ledger
from shared.jobs.stored import json_text

POLL_SECONDS = 2.0
START_LEASE = 15.0  # seconds in which a service must have begun with a run that it was given
APP_LEASE = 10.0  # seconds that a process of the app may be silent before its duties are another's
START_AGAIN = 1.0  # seconds after which a run that could not be given away is tried again
FORGET_EVERY = 3.0
FORGET_GRACE = 60.0  # seconds after which a workflow that should have ended by itself is ended
KEPT_BYTES = 512 * 1024  # of remembered results that travel with a run; more comes step by step

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """One that drives runs: its name, its jobs, and how it is called."""

    name: str
    jobs: tuple[JobDef, ...]
    runs: RunsPort

    @property
    def worker(self) -> UUID:
        """By which the ledger knows that it has a run."""
        return uuid5(NAMESPACE_DNS, f"{self.name}.services.stepway")


class ServiceClaims(Claims):
    """Claims on behalf of a service: as many at a time as its living replicas have slots."""

    def __init__(self, database: Database, ledger: Ledger, service: Service) -> None:
        super().__init__(database, ledger, service.worker, 0.0, START_LEASE)
        self._service = service

    async def take_for_service(self) -> Claim | None:
        return await self._take(self._slots)

    async def _slots(self, session: AsyncSession) -> Slots:
        """Only versions that every replica knows: the workflow engine places a run on any of them."""
        await session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": self._service.name})
        values = {"service": self._service.name, "worker": self._service.worker}
        found = (await session.execute(_REPLICAS, values)).one()
        replicas: list[Mapping[str, list[int]]] = found.replicas
        busy: Mapping[str, int] = found.busy
        if not replicas:
            return {}
        slots = {}
        for kind, most in _slots_of(self._service.jobs).items():
            known = set.intersection(*(set(one.get(kind, [])) for one in replicas))
            if known:
                slots[kind] = (sorted(known), most * len(replicas) - busy.get(kind, 0))
        return slots

    async def due(self) -> tuple[bool, float]:
        """Whether something may be claimed now, and the seconds until more may be, or until the next look."""
        kinds = [job.kind for job in self._service.jobs]
        async with self._database.statement() as connection:
            row = (await connection.execute(_DUE, {"kinds": kinds})).one()
        left = POLL_SECONDS if row.left is None else min(max(float(row.left), 0.0), POLL_SECONDS)
        return row.now, left

    async def _claimed(self, session: AsyncSession, row: Any) -> Claim:
        await session.execute(_GIVEN, {"job": row.id, "fence": row.fence, "service": self._service.name})
        return await super()._claimed(session, row)

    async def give_back(self, claim: Claim, delay: float) -> None:
        """The service could not be reached."""
        async with self._database.statement() as connection:
            await connection.execute(_GIVE_BACK, {"id": claim.job_id, "fence": claim.fence, "delay": delay})

    async def renew_all(self) -> None:
        """Nobody could report while no process of the app was there: that is no run's fault."""
        async with self._database.statement() as connection:
            await connection.execute(_RENEW_ALL, {"worker": self._service.worker, "lease": START_LEASE})


class Dispatcher:
    """`start` and `close` are called from the event loop."""

    def __init__(self, database: Database, ledger: Ledger, services: Iterable[Service]) -> None:
        self._database = database
        self._ledger = ledger
        self._services = {one.name: one for one in services}
        self._claims = {one.name: ServiceClaims(database, ledger, one) for one in self._services.values()}
        self._me = Claims(database, ledger, uuid4(), APP_LEASE)
        self._tasks: list[asyncio.Task[None]] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._woken: set[int] = set()

    @property
    def kinds(self) -> dict[str, str]:
        """`{kind: the service that drives it}`."""
        return {job.kind: one.name for one in self._services.values() for job in one.jobs}

    async def hold(self, name: str) -> int | None:
        """Take or keep a named duty of the app's processes: its epoch, or None while another one has it."""
        return await self._me.hold(name)

    async def _announce(self) -> None:
        pid = os.getpid()
        await self._me.announce(Process(self._me.process, machine_identity(), pid, process_identity(pid), {}, "app"))

    async def start(self) -> None:
        await self._announce()
        for claims in self._claims.values():
            await claims.renew_all()
        self._tasks = [asyncio.create_task(self._give_forever(one), name=f"give-{one}") for one in self._services]
        self._tasks += [
            asyncio.create_task(self._reap_forever(), name="reap-runs"),
            asyncio.create_task(self._forget_forever(), name="forget-runs"),
            asyncio.create_task(self._wake_forever(), name="wake-runs"),
        ]

    async def close(self) -> None:
        for task in [*self._tasks, *self._starting]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._starting, return_exceptions=True)
        with contextlib.suppress(Exception):  # the database may be gone already: the lease ends by itself
            async with asyncio.timeout(1.0):
                await self._me.leave()

    def dead(self) -> list[str]:
        """Loops that should run and do not."""
        return [task.get_name() for task in self._tasks if task.done()]

    # ---- loops; each goes on after a fault, for the database may come back

    async def _give_forever(self, name: str) -> None:
        service, claims = self._services[name], self._claims[name]
        while True:
            due = POLL_SECONDS
            work = self._ledger.hub.watch(WORK)
            try:
                # Most news are of other services' jobs, and a claim costs far more than a look.
                now, due = await claims.due()
                while now and (claim := await claims.take_for_service()):
                    self._spawn(self._give(service, claims, claim))
                    now, due = await claims.due()
            except Exception as error:
                log.warning("claim_failed", service=name, error=f"{type(error).__name__}: {error}"[:300])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(due, 0.005)):
                    await work.wait()

    async def _give(self, service: Service, claims: ServiceClaims, claim: Claim) -> None:
        try:
            async with asyncio.timeout(START_LEASE):
                await service.runs.start_run(order_of(claim))
        except Exception as error:
            log.warning(
                "run_not_given",
                service=service.name,
                job=str(claim.job_id),
                error=f"{type(error).__name__}: {error}"[:300],
            )
            with contextlib.suppress(Exception):  # the database is away: the lease ends by itself
                await claims.give_back(claim, START_AGAIN)

    async def _reap_forever(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self._announce()
                if await self._me.reap():
                    self._ledger.hub.publish(WORK)
            except Exception as error:
                log.warning("reap_failed", error=type(error).__name__)

    async def _wake_forever(self) -> None:
        """Tell runs that work of events that have come for them: those that are parked are given away instead."""
        while True:
            sent = self._ledger.hub.watch(WORK)
            try:
                await self._wake()
            except Exception as error:  # the event is found when nothing else of the run works any more
                log.warning("wake_failed", error=f"{type(error).__name__}: {error}"[:300])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await sent.wait()

    async def _wake(self) -> None:
        async with self._database.statement() as connection:
            rows = (await connection.execute(_SIGNALLED, {"kinds": list(self.kinds)})).all()
        fresh = [row for row in rows if row.id not in self._woken]
        self._woken = {row.id for row in rows}
        for row in fresh:
            service = self._services[self.kinds[row.kind]]
            self._spawn(service.runs.wake(instance_id(row.job_id, row.fence)))

    async def _forget_forever(self) -> None:
        while True:
            await asyncio.sleep(FORGET_EVERY)
            for service in self._services.values():
                try:
                    await self._forget(service)
                except Exception as error:
                    log.warning("forget_failed", service=service.name, error=f"{type(error).__name__}: {error}"[:300])

    async def _forget(self, service: Service) -> None:
        async with self._database.statement() as connection:
            rows = (await connection.execute(_OVER, {"service": service.name, "grace": FORGET_GRACE})).all()
        for row in rows:
            instance = instance_id(row.job_id, row.fence)
            try:
                forgotten = await service.runs.forget(instance, row.stale)
            except (
                Exception
            ) as error:  # no reason to hold up the others; where the service is away, the next round will do
                log.info("not_forgotten", instance=instance, error=f"{type(error).__name__}: {error}"[:300])
                continue
            if forgotten:
                async with self._database.statement() as connection:
                    await connection.execute(_FORGOTTEN, {"job": row.job_id, "fence": row.fence})

    def _spawn(self, work: Any) -> None:
        async def body() -> None:
            try:
                await work
            except Exception as error:
                log.warning("call_failed", error=f"{type(error).__name__}: {error}"[:300])

        task = asyncio.create_task(body())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)


def order_of(claim: Claim) -> RunOrder:
    """What a service is given of a run. Results that would make it too long come with their steps."""
    room, steps = KEPT_BYTES, {}
    for key, one in claim.steps.items():
        size = 0 if one.result is None else len(json_text(one.result))
        room -= size
        kept = size == 0 or room >= 0
        steps[key] = Memory(
            state=one.state, begun=one.begun, may_have_effects=one.may_have_effects,
            result=one.result if kept else None, error=one.error, kept=kept,
        )  # fmt: skip
    return RunOrder(
        job_id=claim.job_id, kind=claim.kind, version=claim.version, fence=claim.fence, attempt=claim.attempt,
        phase=claim.phase, input=claim.input, error=claim.error, steps=steps,
        overdue=claim.seconds_left is not None and claim.seconds_left <= 0, topic=claim.topic,
        traceparent=claim.traceparent,
    )  # fmt: skip


def _slots_of(jobs: Iterable[JobDef]) -> dict[str, int]:
    slots: dict[str, int] = {}
    for job in jobs:
        slots[job.kind] = max(job.slots, slots.get(job.kind, 0))
    return slots


_REPLICAS = text("""
    SELECT coalesce((SELECT jsonb_agg(kinds) FROM jobs.process
                      WHERE service = :service AND lease_until > clock_timestamp()), '[]') AS replicas,
           coalesce((SELECT jsonb_object_agg(kind, running) FROM (
                     SELECT kind, count(*) AS running FROM jobs.job WHERE worker = :worker GROUP BY kind) busy), '{}') AS busy
""")

_LIVE = "kind = ANY(:kinds) AND worker IS NULL AND state IN ('pending', 'running', 'waiting', 'cancelling')"

_DUE = text(f"""
    SELECT EXISTS (SELECT 1 FROM jobs.job WHERE {_LIVE} AND run_at <= clock_timestamp()) AS now,
           (SELECT extract(epoch FROM min(run_at) - clock_timestamp()) FROM jobs.job
             WHERE {_LIVE} AND run_at > clock_timestamp() AND isfinite(run_at)) AS left""")

_GIVEN = text("""
    INSERT INTO jobs.instance (job_id, fence, service) VALUES (:job, :fence, :service) ON CONFLICT DO NOTHING""")

_GIVE_BACK = text("""
    UPDATE jobs.job SET worker = NULL, fence = fence + 1, run_at = clock_timestamp() + make_interval(secs => :delay)
     WHERE id = :id AND fence = :fence AND worker IS NOT NULL""")

_RENEW_ALL = text("""
    UPDATE jobs.job SET lease_until = clock_timestamp() + make_interval(secs => :lease)
     WHERE worker = :worker AND lease_until < clock_timestamp() + make_interval(secs => :lease)""")

_SIGNALLED = text("""
    SELECT signal.id, signal.job_id, job.fence, job.kind FROM jobs.signal JOIN jobs.job ON job.id = signal.job_id
     WHERE signal.taken_by IS NULL AND job.worker IS NOT NULL AND job.lease_until IS NOT NULL
       AND job.state = 'running' AND job.kind = ANY(:kinds)""")

# Of a run that has ended by itself the workflow ends in the same moment; of one that was taken away it may never do so.
_OVER = text("""
    SELECT instance.job_id, instance.fence,
           job.fence IS DISTINCT FROM instance.fence OR
           instance.created_at < clock_timestamp() - make_interval(secs => :grace) AS stale
      FROM jobs.instance LEFT JOIN jobs.job ON job.id = instance.job_id
     WHERE instance.service = :service AND (job.id IS NULL OR job.fence <> instance.fence OR job.worker IS NULL)
     ORDER BY instance.created_at LIMIT 200""")

_FORGOTTEN = text("DELETE FROM jobs.instance WHERE job_id = :job AND fence = :fence")

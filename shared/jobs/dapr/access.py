"""The ledger as the app serves it to the services that drive runs. A call for another service's job is refused."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import text

from shared.db.engine import Database
from shared.jobs.attempts import Attempts, Remembered
from shared.jobs.changes import RENEWED
from shared.jobs.claims import Claims, Process
from shared.jobs.dapr.ports import Begin, Replica, Signal, Stop, Working
from shared.jobs.endings import Endings
from shared.jobs.hub import CANCEL, WORK
from shared.jobs.ledger import Ledger, StaleFence
from shared.jobs.outcomes import Permanent
from shared.rpc.server import caller

REPLICA_LEASE = 10.0  # seconds that a replica may be silent
HOLD = 1.0  # seconds that a beat is held, to be answered at once when something is to stop
_KNOWN = 10_000
ANOTHERS = "The process is another service's."

_BEAT = text(f"""
    WITH given AS (
        SELECT * FROM unnest(CAST(:jobs AS uuid[]), CAST(:fences AS bigint[]), CAST(:keys AS text[]),
                             CAST(:tokens AS uuid[]), CAST(:undos AS boolean[])) AS g(job, fence, key, token, undo)),
    renewed AS (
        UPDATE jobs.job SET lease_until = {RENEWED} WHERE worker IS NOT NULL AND kind = ANY(:kinds)
           AND (id, fence) IN (SELECT job, fence FROM given))
    SELECT given.token, given.undo, job.id IS NULL OR (NOT given.undo AND step.token IS DISTINCT FROM given.token) AS stale,
           job.phase = 'undo' AS cancelled, job.deadline <= clock_timestamp() AS overdue
      FROM given
      LEFT JOIN jobs.job job ON job.id = given.job AND job.fence = given.fence AND job.worker IS NOT NULL
                                 AND job.kind = ANY(:kinds)
      LEFT JOIN jobs.step step ON step.job_id = job.id AND step.key = given.key""")

_RENEW_PROCESS = text("""
    UPDATE jobs.process SET lease_until = clock_timestamp() + make_interval(secs => :lease)
     WHERE id = :id AND service = coalesce(:service, service) RETURNING id""")

_LEAVE = text("DELETE FROM jobs.process WHERE id = :id AND service = coalesce(:service, service)")

_SERVICE_OF = text("SELECT service FROM jobs.process WHERE id = :id")

_RELEASE = text("""
    UPDATE jobs.job SET worker = NULL, fence = fence + 1, run_at = clock_timestamp()
     WHERE id = :id AND fence = :fence AND worker IS NOT NULL""")


class LedgerAccess:
    """Implements `JobsPort`. `services` says which service drives a kind of job."""

    def __init__(self, database: Database, ledger: Ledger, services: Mapping[str, str]) -> None:
        self._database = database
        self._hub = ledger.hub
        self._services = services
        self._ledger = ledger
        self._attempts = Attempts(database.url, ledger.hub, repeats=True)
        self._endings = Endings(database, ledger)
        self._kinds: OrderedDict[UUID, str] = OrderedDict()

    async def close(self) -> None:
        await self._attempts.close()

    # ---- processes

    async def join(self, replica: Replica) -> None:
        self._check_service(replica.service)
        process = Process(replica.id, replica.host, replica.pid, replica.started, replica.kinds, replica.service)
        if not await self._claims(replica.id).announce(process):
            raise Permanent("not_your_job", ANOTHERS)
        self._hub.publish(WORK)

    async def leave(self, process: UUID) -> None:
        async with self._database.statement() as connection:
            await connection.execute(_LEAVE, {"id": process, "service": caller.get()})

    async def beat(self, process: UUID, working: list[Working]) -> list[Stop]:
        async with self._database.statement() as connection:
            values = {"id": process, "lease": REPLICA_LEASE, "service": caller.get()}
            renewed = await connection.execute(_RENEW_PROCESS, values)
            if renewed.one_or_none() is None:
                raise Permanent("process_unknown", "The process was taken for dead; it joins again.")
        if not working:
            await asyncio.sleep(HOLD)
            return []
        changed = self._hub.watch(CANCEL)
        stops = await self._stops(working)
        if stops:
            return stops
        try:
            async with asyncio.timeout(HOLD):
                await changed.wait()
        except TimeoutError:
            return []  # the next beat comes at once, and looks
        return await self._stops(working)

    async def hold(self, process: UUID, name: str) -> int | None:
        async with self._database.statement() as connection:
            service = await connection.scalar(_SERVICE_OF, {"id": process})
        if service is None:
            return None  # taken for dead: it joins again
        self._check_service(service)
        return await self._claims(process).hold(name)

    async def _stops(self, working: list[Working]) -> list[Stop]:
        values = {
            "jobs": [one.job_id for one in working], "fences": [one.fence for one in working],
            "keys": [one.key for one in working], "tokens": [one.token for one in working],
            "undos": [one.undo for one in working],
            "kinds": [kind for kind, service in self._services.items() if caller.get() in (None, service)],
        }  # fmt: skip
        async with self._database.statement() as connection:
            rows = (await connection.execute(_BEAT, values)).all()
        stops = []
        for row in rows:
            if row.stale:
                stops.append(Stop(token=row.token, reason="stale"))
            elif row.cancelled and not row.undo:
                stops.append(Stop(token=row.token, reason="cancelled"))
            elif row.overdue and not row.undo:
                stops.append(Stop(token=row.token, reason="overdue"))
        return stops

    # ---- steps

    async def begin(self, job: UUID, fence: int, key: str, title: str, weight: float) -> Begin:
        await self._check(job)
        begun = await self._attempts.begin(job, fence, key, title, weight)
        if isinstance(begun, Remembered):
            return Begin(result=begun.result)
        return Begin(token=begun.token, number=begun.number, tries=begun.tries)

    async def succeed(self, job: UUID, fence: int, key: str, token: UUID, result: Any) -> None:
        await self._check(job)
        await self._attempts.succeed(job, fence, key, token, result)

    async def fail(
        self, job: UUID, fence: int, key: str, token: UUID, error: dict[str, Any], again: bool, after: float
    ) -> None:
        await self._check(job)
        await self._attempts.fail(job, fence, key, token, error, state="pending" if again else "failed", after=after)

    async def progress(
        self, job: UUID, fence: int, key: str, token: UUID, percent: float | None, message: str | None
    ) -> None:
        await self._check(job)
        await self._attempts.progress(job, fence, key, token, percent, message)

    async def wait(self, job: UUID, fence: int, key: str, seconds: float | None, event: str | None) -> Signal:
        await self._check(job)
        if event is not None:
            taken, data = await self._attempts.take_signal(job, key, event)
            if taken:
                return Signal(taken=True, data=data)
        return Signal(taken=False, left=await self._attempts.wait(job, fence, key, seconds))

    async def begin_undo(self, job: UUID, fence: int, key: str) -> Begin:
        await self._check(job)
        tries = await self._attempts.begin_undo(job, fence, key)
        return Begin(tries=tries, result=(await self._attempts.results(job)).get(key))

    async def undone(self, job: UUID, fence: int, key: str) -> None:
        await self._check(job)
        await self._attempts.undone(job, fence, key)

    async def undo_failed(self, job: UUID, fence: int, key: str, error: dict[str, Any]) -> None:
        await self._check(job)
        await self._attempts.undo_failed(job, fence, key, error)

    # ---- ends

    async def end_succeeded(self, job: UUID, fence: int, result: Any) -> None:
        await self._check(job)
        async with self._once(job, fence):
            await self._endings.succeed(job, fence, result)

    async def end_failed(self, job: UUID, fence: int, error: dict[str, Any], undo: bool) -> None:
        await self._check(job)
        async with self._once(job, fence):
            await self._endings.fail(job, fence, error, undo=undo)
        if undo:
            await self.release(job, fence)

    async def end_parked(self, job: UUID, fence: int, seconds: float | None, names: list[str]) -> None:
        await self._check(job)
        async with self._once(job, fence):
            await self._endings.park(job, fence, seconds, names)

    async def end_undone(
        self, job: UUID, fence: int, left: list[dict[str, Any]], failure: dict[str, Any] | None
    ) -> None:
        await self._check(job)
        async with self._once(job, fence):
            await self._endings.undone(job, fence, left, failure)

    async def release(self, job: UUID, fence: int) -> None:
        await self._check(job)
        async with self._database.statement() as connection:
            await connection.execute(_RELEASE, {"id": job, "fence": fence})
        self._hub.publish(WORK)

    # ----

    @asynccontextmanager
    async def _once(self, job: UUID, fence: int) -> AsyncIterator[None]:
        """An end that is reported again is passed over. With each, a place for another run is free."""
        try:
            yield
            self._hub.publish(WORK)
        except StaleFence:
            statement = text("SELECT 1 FROM jobs.job WHERE id = :id AND fence = :fence AND worker IS NULL")
            async with self._database.statement() as connection:
                if (await connection.execute(statement, {"id": job, "fence": fence})).one_or_none() is None:
                    raise

    async def _check(self, job: UUID) -> None:
        """Refuse the service whose job it is not."""
        service = caller.get()
        if service is None:
            return
        kind = self._kinds.get(job)
        if kind is None:
            async with self._database.statement() as connection:
                kind = await connection.scalar(text("SELECT kind FROM jobs.job WHERE id = :id"), {"id": job})
            if kind is None:
                raise StaleFence(str(job))
            self._kinds[job] = kind
            if len(self._kinds) > _KNOWN:
                self._kinds.popitem(last=False)
        if self._services.get(kind) != service:
            raise Permanent("not_your_job", "The job is another service's.")

    def _check_service(self, service: str) -> None:
        if caller.get() not in (None, service):
            raise Permanent("not_your_job", ANOTHERS)

    def _claims(self, process: UUID) -> Claims:
        return Claims(self._database, self._ledger, process, REPLICA_LEASE)

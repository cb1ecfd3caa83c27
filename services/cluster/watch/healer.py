"""Puts back what others delete or change of an endpoint's objects, without fighting them: ever later, counted, and told.

`cluster` says when something differs and how it is mended; here is when to act, and when to leave it for a while.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

import structlog

from services.cluster.runtimes.base import StaleGeneration
from shared.contracts.deployments import ExpectedEndpoint
from shared.contracts.ports import EndpointNews, ObserverPort
from shared.jobs.outcomes import StepError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HealPace:
    """Seconds. `first` lets people see what differs, and lets a change of several objects come to its end.

    Each further repair waits four times longer, `longest` at most; after `calm` without one it begins anew.
    """

    first: float = 1.0
    longest: float = 600.0
    calm: float = 600.0


@dataclass(slots=True)
class _Patient:
    repairs: int = 0
    last: float = 0.0  # by the loop's clock
    task: asyncio.Task[None] | None = None


class Healer:
    """For one cluster under one lease. `fault_of` looks anew, `mend` makes the endpoint's objects as they should be."""

    def __init__(
        self,
        app: ObserverPort,
        cluster_id: UUID,
        epoch: int,
        fault_of: Callable[[str], Awaitable[str | None]],
        mend: Callable[[ExpectedEndpoint], Awaitable[None]],
        pace: HealPace,
    ) -> None:
        self._app = app
        self._cluster_id = cluster_id
        self._epoch = epoch
        self._fault_of = fault_of
        self._mend = mend
        self._pace = pace
        self._patients: dict[str, _Patient] = {}

    def see(self, endpoint_id: str) -> None:
        """Something differs. Calling again while it is being looked after changes nothing."""
        patient = self._patients.setdefault(endpoint_id, _Patient())
        if patient.task is None or patient.task.done():
            patient.task = asyncio.create_task(self._look_after(endpoint_id, patient), name=f"heal-{endpoint_id}")

    async def close(self) -> None:
        tasks = [patient.task for patient in self._patients.values() if patient.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_after(self, endpoint_id: str, patient: _Patient) -> None:
        """One repair. When it did not help, the next report of what differs begins another."""
        clock = asyncio.get_running_loop().time
        if patient.repairs and clock() - patient.last > self._pace.calm:
            patient.repairs = 0
        pause = self._pause(patient.repairs)
        await asyncio.sleep(max(pause - (clock() - patient.last), 0) if patient.repairs else pause)
        try:
            await self._repair(endpoint_id, patient)
        except StepError as fault:  # the cluster or the lease has gone: the next report decides
            log.info("not_healed", endpoint=endpoint_id, code=fault.code)
        except Exception as error:
            log.warning("heal_failed", endpoint=endpoint_id, error=f"{type(error).__name__}: {error}"[:300])
        finally:
            patient.last = clock()

    def _pause(self, repairs: int) -> float:
        return float(min(self._pace.first * 4 ** min(repairs, 10), self._pace.longest))

    async def _repair(self, endpoint_id: str, patient: _Patient) -> None:
        fault = await self._fault_of(endpoint_id)
        wanted = await self._wanted(endpoint_id) if fault is not None else None
        if fault is None or wanted is None:
            return
        patient.repairs += 1
        again = f"; not again within {self._pause(patient.repairs):g} s" if patient.repairs > 1 else ""
        count = f" Repair {patient.repairs} in a row{again}." if patient.repairs > 1 else ""
        try:
            await self._mend(wanted)
        except StaleGeneration:  # a job has begun a later change: that puts it right
            return
        except StepError as error:
            log.warning("heal_failed", endpoint=endpoint_id, code=error.code)
            await self._tell(wanted, "heal_failed", f"{fault} It could not be put back: {error.message}{count}")
            return
        log.info("healed", endpoint=endpoint_id, repairs=patient.repairs)
        await self._tell(wanted, "healed", f"{fault} It was put back.{count}")

    async def _wanted(self, endpoint_id: str) -> ExpectedEndpoint | None:
        """What should be there; None where nobody knows the endpoint, a job works on it, or it should not run."""
        with contextlib.suppress(ValueError):
            found = await self._app.expected(self._cluster_id, self._epoch, UUID(endpoint_id))
            if found and found[0].spec is not None:
                return found[0]
        return None

    async def _tell(self, one: ExpectedEndpoint, news: EndpointNews, message: str) -> None:
        await self._app.tell(self._cluster_id, self._epoch, one.endpoint_id, news, message)

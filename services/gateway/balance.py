"""Chooses a worker: the fewest outstanding requests among those that are free and well, in turn among equals.

A worker that fails is left alone for a while (a passive circuit breaker), then tried with one request. When all that
are well are full, requests wait in line, a bounded number for a bounded time. All state is of this process.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from uuid import UUID

from services.gateway.limits import Limits
from services.gateway.table import Route, RouteTable, Worker
from shared.errors import Problem

_CLOSED_STATES = frozenset({"stopped", "deleting", "deleted"})


class _Seat:
    """What is known of one worker."""

    __slots__ = ("failures", "out_until", "outstanding", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.outstanding = 0
        self.failures = 0  # in a row
        self.out_until = 0.0

    def free(self) -> bool:
        return self.outstanding < (1 if self.failures else self.worker.capacity)


class _Waiter:
    __slots__ = ("avoid", "lease")

    def __init__(self, avoid: frozenset[str]) -> None:
        self.avoid = avoid
        self.lease: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()


class _Pool:
    """One endpoint's workers and those who wait for them."""

    __slots__ = ("route", "seats", "turn", "waiters")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.seats: dict[str, _Seat] = {}
        self.turn = 0
        self.waiters: deque[_Waiter] = deque()
        self.adopt(route)

    def adopt(self, route: Route) -> None:
        """Takes a new route; a worker that stays as it was keeps its count and its failures."""
        seats: dict[str, _Seat] = {}
        for worker in route.workers:
            seat = self.seats.get(worker.id)
            if seat is None:
                seat = _Seat(worker)
            elif _way(seat.worker) != _way(worker):
                seat.failures, seat.out_until = 0, 0.0  # it has been started anew, or is reached anew
            seat.worker = worker
            seats[worker.id] = seat
        self.route, self.seats = route, seats


def _way(worker: Worker) -> tuple[object, ...]:
    return worker.url, worker.host, worker.transport, worker.api_key


class Lease:
    """One request's place at a worker, given back at the end of the `with` block."""

    __slots__ = ("_balancer", "_pool", "_released", "_seat")

    def __init__(self, balancer: "Balancer", pool: _Pool, seat: _Seat) -> None:
        self._balancer, self._pool, self._seat = balancer, pool, seat
        self._released = False
        seat.outstanding += 1

    @property
    def worker(self) -> Worker:
        return self._seat.worker

    def succeeded(self) -> None:
        self._seat.failures = 0
        self._seat.out_until = 0.0

    def failed(self, *, hard: bool) -> None:
        """A hard failure (nobody listens) takes the worker out at once, another from the second in a row on."""
        self._balancer.failed(self._seat, hard=hard)

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._seat.outstanding -= 1
            self._balancer.serve_waiters(self._pool)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


class Balancer:
    def __init__(self, table: RouteTable, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._limits = limits
        self._clock = clock
        self._pools: dict[UUID, _Pool] = {}
        table.subscribe(self._changed)

    async def acquire(self, endpoint_id: UUID, avoid: frozenset[str] = frozenset()) -> Lease:
        """A place at a worker, if possible none of `avoid` (those that have just failed this request).

        Raises Problem `endpoint_unavailable` when no worker is well, `endpoint_busy` when none becomes free in time.
        """
        pool = self._pool(endpoint_id)
        if not pool.waiters:
            lease = self._take(pool, avoid)
            if lease is not None:
                return lease
        if len(pool.waiters) >= self._limits.queue_length:
            raise self._busy("and as many requests as may wait are waiting")
        return await self._wait(pool, avoid)

    async def _wait(self, pool: _Pool, avoid: frozenset[str]) -> Lease:
        waiter = _Waiter(avoid)
        pool.waiters.append(waiter)
        self.serve_waiters(pool)  # those ahead may be waiting for what this one does not need
        try:
            async with asyncio.timeout(self._limits.queue_seconds):
                return await waiter.lease
        except BaseException as error:
            future = waiter.lease
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()  # it was given in the same moment in which the waiting ended
            if isinstance(error, TimeoutError):
                raise self._busy(f"and none became free within {self._limits.queue_seconds:g} s") from None
            raise
        finally:
            if waiter in pool.waiters:
                pool.waiters.remove(waiter)

    def _pool(self, endpoint_id: UUID) -> _Pool:
        route = self._table.get(endpoint_id)
        if route is None:
            raise _unavailable("The endpoint is not being served yet.")
        pool = self._pools.get(endpoint_id)
        if pool is None:
            pool = self._pools[endpoint_id] = _Pool(route)
        return pool

    def _changed(self, endpoint_id: UUID, route: Route | None) -> None:
        pool = self._pools.get(endpoint_id)
        if pool is None:
            return
        if route is None:
            del self._pools[endpoint_id]
            pool.adopt(pool.route.model_copy(update={"workers": (), "state": "deleted"}))
        else:
            pool.adopt(route)
        self.serve_waiters(pool)

    def _take(self, pool: _Pool, avoid: frozenset[str]) -> Lease | None:
        """The best free worker, or None when those that are well are full. Raises when none is well.

        While workers are being replaced the next one is worth waiting for.
        """
        route = pool.route
        replaced = route.state == "updating"
        if (not pool.seats and not replaced) or route.state in _CLOSED_STATES:
            raise _unavailable(route.reason or f"The endpoint is {route.state} and has no ready worker.")
        now = self._clock()
        well = [(turn, seat) for turn, seat in enumerate(pool.seats.values()) if seat.out_until <= now]
        if not well and replaced:
            return None
        if not well:
            soonest = min(seat.out_until for seat in pool.seats.values()) - now
            raise _unavailable("None of the endpoint's workers answers at the moment.", retry_after=soonest)
        well = [(turn, seat) for turn, seat in well if seat.worker.id not in avoid] or well
        free = [(turn, seat) for turn, seat in well if seat.free()]
        if not free:
            return None
        count = len(pool.seats)
        turn, best = min(free, key=lambda one: (one[1].outstanding, (one[0] - pool.turn) % count))
        pool.turn = (turn + 1) % count
        return Lease(self, pool, best)

    def serve_waiters(self, pool: _Pool) -> None:
        for waiter in list(pool.waiters):
            if waiter.lease.done():  # it has been cancelled
                continue
            try:
                lease = self._take(pool, waiter.avoid)
            except Problem as problem:
                waiter.lease.set_exception(problem)
                pool.waiters.remove(waiter)
                continue
            if lease is not None:
                waiter.lease.set_result(lease)
                pool.waiters.remove(waiter)

    def failed(self, seat: _Seat, *, hard: bool) -> None:
        if seat.out_until > self._clock():
            return  # the many requests that one crash ends count as one failure
        seat.failures += 1
        if hard or seat.failures > 1:
            doublings = min(max(0, seat.failures - (1 if hard else 2)), 16)
            seconds = min(self._limits.out_seconds * 2**doublings, self._limits.out_max_seconds)
            seat.out_until = self._clock() + seconds
            asyncio.get_running_loop().call_later(seconds, self._recovered, seat)

    def _recovered(self, seat: _Seat) -> None:
        """Those who wait for other workers may now have this one."""
        for pool in self._pools.values():
            if pool.waiters and pool.seats.get(seat.worker.id) is seat:
                self.serve_waiters(pool)

    @staticmethod
    def _busy(why: str) -> Problem:
        return Problem("endpoint_busy", f"All workers of the endpoint are busy, {why}.", headers={"Retry-After": "1"})


def _unavailable(detail: str, retry_after: float = 5.0) -> Problem:
    seconds = str(max(1, math.ceil(retry_after)))
    return Problem("endpoint_unavailable", detail, headers={"Retry-After": seconds})

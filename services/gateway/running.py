"""Watches over requests while they run: ends them when the client goes, the key is revoked, or the service stops."""

import asyncio
from collections.abc import Callable, Coroutine
from uuid import UUID

from starlette.types import Receive

from services.gateway.access import CachedAccess, Caller, Credentials
from services.gateway.call import ClientGone
from services.gateway.exchange import Reply
from services.gateway.limits import Limits
from shared.errors import Problem


class KeyWatch:
    """Checks a running request's key again and again."""

    def __init__(
        self,
        access: CachedAccess,
        asking: Credentials,
        caller: Caller,
        endpoint_id: UUID,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._access = access
        self._asking = asking
        self._caller = caller
        self._endpoint_id = endpoint_id
        self._limits = limits
        self._clock = clock

    async def refusal(self) -> Problem:
        """Returns when the request may go on no longer, and says why.

        A check that cannot be made (the database is away) is tried again; a request that has gone unchecked for too
        long ends.
        """
        checked_at = self._clock() - self._limits.cache_seconds  # at the earliest
        pause = self._limits.recheck_seconds
        while True:
            await asyncio.sleep(pause)
            asked_at = self._clock()
            try:
                caller = await self._access.recheck(self._asking, self._endpoint_id)
            except Problem as problem:
                if problem.status < 500:
                    return problem
                next_answer = self._clock() + self._limits.recheck_retry_seconds + self._limits.access_seconds
                if next_answer - checked_at > self._limits.unchecked_seconds:
                    return problem
                pause = self._limits.recheck_retry_seconds
                continue
            if caller.id != self._caller.id:
                return Problem("unauthenticated", "The key now belongs to someone else.")
            checked_at = asked_at
            pause = self._limits.recheck_seconds


class _Running:
    __slots__ = ("_reply", "verdict", "work")

    def __init__(self, work: asyncio.Task[None], reply: Reply) -> None:
        self.work = work
        self._reply = reply
        self.verdict: Exception | None = None

    def stop(self, verdict: Exception) -> None:
        """Cancels the work, unless the answer is already out: a server reports the client as gone then, too."""
        if self.verdict is None and not self._reply.finished and not self.work.done():
            self.verdict = verdict
            self.work.cancel()

    async def stop_when_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.stop(ClientGone())

    async def stop_when_refused(self, watch: KeyWatch) -> None:
        self.stop(await watch.refusal())


class RunningRequests:
    def __init__(self) -> None:
        self._running: set[_Running] = set()
        self._closed: Problem | None = None

    async def run(self, work: Coroutine[None, None, None], receive: Receive, watch: KeyWatch, reply: Reply) -> None:
        """Runs `work` to its end, or to its cancellation with what ended it: Problem or ClientGone.

        When this returns, the work has let go of everything: its worker's connection is closed.
        """
        if self._closed is not None:
            work.close()
            raise self._closed
        running = _Running(asyncio.create_task(work), reply)
        self._running.add(running)
        watchers = [
            asyncio.create_task(running.stop_when_gone(receive)),
            asyncio.create_task(running.stop_when_refused(watch)),
        ]
        try:
            await asyncio.wait((running.work,))
        finally:
            running.work.cancel()
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(running.work, *watchers, return_exceptions=True)
            self._running.discard(running)
        if running.verdict is not None and running.work.cancelled():
            raise running.verdict
        running.work.result()

    async def stop_all(self, why: Problem) -> None:
        self._closed = why
        work = [running.work for running in self._running]
        for running in self._running:
            running.stop(why)
        await asyncio.gather(*work, return_exceptions=True)

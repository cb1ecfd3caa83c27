"""Whether this process lives, has started, and can serve. What is answered is looked at, never assumed.

Alive: the event loop turns, and what must run for ever still runs; a database that is away kills nobody. Ready: every
named check passes within its time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

import structlog

STALLED = 20.0  # seconds without a turn of the event loop, after which it hangs
PULSE = 0.5
CHECK_SECONDS = 2.0

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Patient(Generic[T]):
    """Calls something that may hang: one call at a time, and nobody waits for it longer than `seconds`.

    None when it has not answered by then, or has failed. A call that hangs is left to end by itself: it is not begun
    again meanwhile, so that looking does not pile up connections.
    """

    def __init__(self, call: Callable[[], Awaitable[T]], seconds: float = CHECK_SECONDS) -> None:
        self._call = call
        self._seconds = seconds
        self._task: asyncio.Task[T] | None = None

    async def __call__(self) -> T | None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="patient")
        task = self._task
        await asyncio.wait({task}, timeout=self._seconds)
        if not task.done() or task.cancelled():
            return None
        error = task.exception()
        if error is not None:
            log.debug("check_failed", error=type(error).__name__)
            return None
        return task.result()

    async def _run(self) -> T:
        return await self._call()


class Readiness:
    """Named checks; each returns whether all is well."""

    def __init__(self, checks: Mapping[str, Callable[[], Awaitable[bool]]], seconds: float = CHECK_SECONDS) -> None:
        self._checks = {name: Patient(check, seconds) for name, check in checks.items()}

    async def missing(self) -> list[str]:
        """The names of those that do not pass now."""
        passed = await asyncio.gather(*(check() for check in self._checks.values()))
        return [name for name, ok in zip(self._checks, passed, strict=True) if not ok]


class Health:
    """The state of a process, as its probes tell it. Written from the event loop, read from any thread.

    `dead` names what must run and does not; it is asked from other threads too, and must not wait.
    """

    def __init__(self, *, stalled: float = STALLED) -> None:
        self._stalled = stalled
        self._turned_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.starting: str | None = "nothing yet"  # what the start is busy with; None: it is over
        self.dead: Callable[[], list[str]] = list
        self.missing: Callable[[], Awaitable[list[str]]] | None = None
        self.exposition: Callable[[], Awaitable[bytes]] | None = None

    def watch_loop(self) -> None:
        """From now on the event loop that calls this must turn."""
        self._loop = asyncio.get_running_loop()
        self._turn()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._turned_at = None

    def _turn(self) -> None:
        assert self._loop is not None
        self._turned_at = time.monotonic()
        self._timer = self._loop.call_later(PULSE, self._turn)

    def faults(self) -> list[str]:
        """Why this process should be started anew; empty while it lives."""
        turned_at = self._turned_at
        if turned_at is not None and time.monotonic() - turned_at > self._stalled:
            return ["the event loop hangs"]
        return self.dead()

    def ask(self, question: Callable[[], Awaitable[T]], seconds: float) -> T:
        """From another thread: put a question to the event loop. TimeoutError when it does not answer in time."""
        if self._loop is None or self._loop.is_closed():
            raise TimeoutError

        async def put() -> T:
            return await question()

        future = asyncio.run_coroutine_threadsafe(put(), self._loop)
        try:
            return future.result(seconds)
        except TimeoutError:
            future.cancel()
            raise

"""Blocking calls beside the event loop, without leaving one behind at a cancellation.

`settled` is for short calls to the disk, `Threads` for calls that wait for a network.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def settled(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call of a few milliseconds in a thread. A cancellation waits until the thread is done with it.

    A thread cannot be stopped: returning early would let the caller close a file that the thread still writes to.
    """
    return await done_with(asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs)))


async def done_with(work: "asyncio.Future[T]", stop: Callable[[], object] = lambda: None) -> T:
    """What the work gives. A cancellation calls `stop`, and is raised when the work has ended, however it ended."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop()
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                continue
        if not work.cancelled():
            work.exception()
        raise


class Threads:
    """At most `count` calls at a time, in threads that keep no process from ending. For one event loop."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)

    async def take(self) -> None:
        """Wait for a thread. Whoever has taken one calls `start` or `give_back`."""
        await self._free.acquire()

    def give_back(self) -> None:
        self._free.release()

    def start(self, function: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        """Use the thread that was taken; it is free again when the call has ended, whether anybody waits or not."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(_looked_at)

        def finish(result: T | None, error: BaseException | None) -> None:
            self._free.release()
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # None only where T has it

        def body() -> None:
            result: T | None = None
            fault: BaseException | None = None
            try:
                result = function(*args)
            except BaseException as error:
                fault = error
            try:
                loop.call_soon_threadsafe(finish, result, fault)
            except RuntimeError:  # the loop is closed: nobody waits
                pass

        threading.Thread(target=body, daemon=True, name="stepway-objects").start()
        return future

    async def run(self, function: Callable[..., T], *args: Any, stop: Callable[[], object], settle: bool) -> T:
        """The call's result. A cancellation calls `stop`, which makes the call end soon.

        With `settle` it then waits for the end; without, the call must harm nothing when it goes on alone.
        """
        await self.take()
        work = self.start(function, *args)
        if settle:
            return await done_with(work, stop)
        try:
            return await work
        except asyncio.CancelledError:
            stop()
            raise


def _looked_at(future: "asyncio.Future[Any]") -> None:
    """An exception that nobody asks for is no news: whoever abandoned the call has its own."""
    if not future.cancelled():
        future.exception()

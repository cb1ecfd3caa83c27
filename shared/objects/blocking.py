"""Short blocking calls beside the event loop, without leaving one behind at a cancellation."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def settled(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call of a few milliseconds in a thread. A cancellation waits until the thread is done with it.

    A thread cannot be stopped: returning early would let the caller close a file that the thread still writes to.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()
        raise

"""Waiting for a cluster that is away: a step waits for a moment where it is, then gives its place to other jobs.

Wherever a step speaks to a cluster, `waits_for_cluster` is around it. A fault of the network is not the job's failure
until the step's retry policy has no more tries; what the step waits for shows in its message.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.jobs.declare import RetryPolicy
from shared.jobs.outcomes import Permanent, Retry, StepError
from shared.jobs.run import Step

IN_PLACE = 30.0  # seconds; longer ones free the slot
UNDO_IN_PLACE = 240.0  # an undo is tried a few times only, by the engine itself
PATIENT = RetryPolicy(attempts=15, delay=1.0, max_delay=60.0, timeout=600.0)  # a quarter of an hour in all
PROBING = RetryPolicy(attempts=12, delay=0.5, max_delay=20.0)  # two minutes: the way to a worker may be the cluster's
_FAULTS_OF_OURS = 3  # tries of what no retry is expected to mend
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0
# What an API server answers in the first moments after its start, before it knows who may do what
_NOT_YET = frozenset({"cluster_unauthorized", "cluster_forbidden"})

R = TypeVar("R")


def waits_for_cluster(fn: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    """Around a step."""
    return _around(fn, IN_PLACE)


def undo_waits_for_cluster(fn: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    """Around an undo."""
    return _around(fn, UNDO_IN_PLACE)


def _around(fn: Callable[..., Awaitable[R]], seconds: float) -> Callable[..., Awaitable[R]]:
    @functools.wraps(fn)
    async def patient(ctx: Step, *arguments: object) -> R:
        clock = asyncio.get_running_loop().time
        deadline, pause, away = clock() + seconds, _FIRST_PAUSE, False
        while True:
            try:
                return await fn(ctx, *arguments)
            except StepError as fault:
                if not _is_passing(fault, away):
                    raise
                if clock() >= deadline:
                    raise Retry(fault.code, fault.message) from fault
                away = True
                ctx.progress(None, f"Waiting for the cluster: {fault.message}")
            except Exception as error:
                if ctx.attempt >= _FAULTS_OF_OURS:
                    raise Permanent("internal", f"An unexpected fault ({type(error).__name__}).") from error
                raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    return patient


def _is_passing(fault: StepError, away: bool) -> bool:
    if isinstance(fault, Retry):
        return fault.code.startswith("cluster_")
    return away and fault.code in _NOT_YET

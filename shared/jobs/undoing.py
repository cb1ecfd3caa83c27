"""Undoes one step, patiently: what both engines do when they take back what was done."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import structlog

from shared.jobs.declare import RetryPolicy, StepDef
from shared.jobs.outcomes import Permanent

UNDO_RETRY = RetryPolicy(attempts=4, delay=0.5, timeout=300)

log = structlog.get_logger(__name__)


async def undo_step(
    step: StepDef, context: Any, argument: Any, result: Any, seen: Callable[[int], AbstractContextManager[None]]
) -> Exception | None:
    """What kept it from being undone, after several tries; None when it was. `seen` goes around each try."""
    failure: Exception | None = None
    for tries in range(1, UNDO_RETRY.attempts + 1):
        try:
            with seen(tries):
                async with asyncio.timeout(UNDO_RETRY.timeout):
                    if step.undo is not None:
                        await step.undo(context, argument, result)
        except Exception as error:  # told to whoever looks after the job: what is left, and why
            failure = error
            log.warning(
                "undo_failed", job=str(context.job_id), step=context.key, tries=tries, error=type(error).__name__
            )
            if isinstance(error, Permanent):
                return error
            if tries < UNDO_RETRY.attempts:
                await asyncio.sleep(UNDO_RETRY.backoff(tries))
        else:
            return None
    return failure

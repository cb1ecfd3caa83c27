"""What both engines do when they take back what was done: find what cannot be reached, and undo steps one by one."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import structlog

from shared.jobs.declare import JobDef, RetryPolicy, StepDef
from shared.jobs.outcomes import Permanent

UNDO_RETRY = RetryPolicy(attempts=4, delay=0.5, timeout=300)

log = structlog.get_logger(__name__)


class Remembered(Protocol):
    """What is known of a step from an earlier life of its run."""

    @property
    def may_have_effects(self) -> bool: ...


def unreached(definition: JobDef, steps: Mapping[str, Remembered], reached: Collection[str]) -> list[dict[str, Any]]:
    """Steps that have begun in an earlier life of this run, and that the job's function did not come to this time."""
    undos = {step.key for step in definition.steps if step.undo is not None}
    missed = [key for key, one in steps.items() if one.may_have_effects and key in undos and key not in reached]
    message = "The job no longer comes to this step, so it cannot be undone."
    return [{"code": "undo_failed", "message": message, "step": key, "cause": "unreached"} for key in missed]


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

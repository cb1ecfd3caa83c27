"""The jobs of `tests.bench.dapr_engine`: steps that do nothing, one after the other. One kind for each way to drive them."""

import time

from shared.jobs.declare import ONCE, JobDef, job, step
from shared.jobs.run import Run, Step

ONE, TWO, BY_HAND, HERE = "one", "two", "hand", "here"  # by the service that drives them; the last is no service
TOGETHER = 10


@step("Tell when it runs", retry=ONCE)
async def now(ctx: Step, number: int) -> float:
    """By a clock that all processes of this machine share, in seconds."""
    return time.perf_counter()


async def steps(run: Run, count: int) -> float:
    """When its first step was entered."""
    first = await run.step(now, 0, key="step-0")
    for number in range(1, count):
        await run.step(now, number, key=f"step-{number}")
    return float(first)


JOBS: dict[str, JobDef] = {name: job(f"bench_{name}", slots=TOGETHER)(steps) for name in (ONE, TWO, BY_HAND, HERE)}

"""A process that runs the embedded engine with the jobs of the fault tests, and can kill or freeze itself at a point.

    python -m tests.shared.jobs.worker URL FOLDER [--at POINT --signal KILL] [--host NAME] [--otlp URL]

Every step and every write to the ledger passes named points, which go into `FOLDER/trace` with the process that passed
them. Steps leave a file each in `FOLDER/effects`; their undo removes it.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from shared import log
from shared.db.engine import Database
from shared.jobs import claims
from shared.jobs.attempts import Attempts
from shared.jobs.declare import Registry, RetryPolicy, job, step
from shared.jobs.engine import EmbeddedEngine
from shared.jobs.hub import Hub
from shared.jobs.ledger import Ledger
from shared.jobs.outcomes import Permanent, Retry
from shared.jobs.run import Run, Step
from shared.telemetry import traces

LEASE = 2.0
QUICK = RetryPolicy(attempts=3, delay=0.05, max_delay=0.1)


class World:
    """What the steps do: files in a folder, and points that are passed on the way."""

    def __init__(self, folder: Path, at: str | None = None, number: int = signal.SIGKILL) -> None:
        self.effects = folder / "effects"
        self.effects.mkdir(parents=True, exist_ok=True)
        self.trace = folder / "trace"
        self._mended = folder / "mended"
        self._at = at
        self._signal = number
        self._passed: Counter[str] = Counter()

    def point(self, name: str) -> None:
        self._passed[name] += 1
        label = f"{name}#{self._passed[name]}"
        with self.trace.open("a") as trace:  # short lines in append mode: whole, whoever else writes
            trace.write(f"{os.getpid()} {label}\n")
        if label == self._at:
            os.kill(os.getpid(), self._signal)

    async def do(self, step: Step, name: str) -> None:
        """The effect of a step, idempotent; something may happen before, in the midst of it, and after."""
        self.point(f"enter {name}")
        await asyncio.sleep(0)
        (self.effects / name).write_text("done")
        log.get_logger(__name__).info("effect")
        self.point(f"leave {name}")

    def undo(self, name: str) -> None:
        self.point(f"enter undo {name}")
        (self.effects / name).unlink(missing_ok=True)
        self.point(f"leave undo {name}")

    def mend(self) -> None:
        """From now on traps can be undone."""
        self._mended.touch()

    @property
    def is_mended(self) -> bool:
        return self._mended.exists()


async def _undo_own(ctx: Step, number: int, result: int | None) -> None:
    ctx.tools.undo(f"{ctx.job_id}.{ctx.key}")


@step("Add one", retry=QUICK, undo=_undo_own)
async def add(ctx: Step, number: int) -> int:
    await ctx.tools.do(ctx, f"{ctx.job_id}.{ctx.key}")
    return number + 1


@step("Fail once", retry=QUICK, undo=_undo_own)
async def flaky(ctx: Step, number: int) -> int:
    await ctx.tools.do(ctx, f"{ctx.job_id}.{ctx.key}")
    if ctx.attempt < 2:
        raise Retry("flaky", "Not yet.")
    return number + 1


@step("Fail for good", undo=_undo_own)
async def fail(ctx: Step, number: int) -> int:
    await ctx.tools.do(ctx, f"{ctx.job_id}.{ctx.key}")
    raise Permanent("broken", "It cannot be done.")


@step("Take the process down", retry=RetryPolicy(attempts=1))
async def poison(ctx: Step, number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


async def _undo_trap(ctx: Step, number: int, result: int | None) -> None:
    if not ctx.tools.is_mended:
        os.kill(os.getpid(), signal.SIGKILL)
    ctx.tools.undo(f"{ctx.job_id}.{ctx.key}")


@step("Cannot be undone", undo=_undo_trap)
async def trap(ctx: Step, number: int) -> int:
    await ctx.tools.do(ctx, f"{ctx.job_id}.{ctx.key}")
    return number


@job("journey", slots=8)
async def journey(run: Run, number: int) -> int:
    number = await run.step(add, number, key="first")
    left, right = await run.gather(run.step(add, number, key="left"), run.step(add, number, key="right"))
    number = await run.step(flaky, left + right, key="flaky")
    await run.sleep(1.5, key="nap")  # longer than a run waits in its slot
    number += await run.wait_event("go", key="go")
    result: int = await run.step(add, number, key="last")
    return result


@job("failing", undo_on_failure=True, slots=8)
async def failing(run: Run, number: int) -> int:
    number = await run.step(add, number, key="first")
    await run.gather(run.step(add, number, key="left"), run.step(add, number, key="right"))
    result: int = await run.step(fail, number, key="fail")
    return result


@job("poisoned", slots=1)
async def poisoned(run: Run, number: int) -> int:
    result: int = await run.step(poison, number)
    return result


@job("trapped", undo_on_failure=True, slots=1)
async def trapped(run: Run, number: int) -> int:
    number = await run.step(add, number, key="first")
    number = await run.step(trap, number)
    result: int = await run.step(fail, number)
    return result


JOBS = [journey, failing, poisoned, trapped]
_TRACED: list[tuple[type, str, Callable[..., str]]] = [
    (Attempts, "begin", lambda job, fence, key, *_: key),
    (Attempts, "succeed", lambda job, fence, key, *_: key),
    (Attempts, "fail", lambda job, fence, key, *_: key),
    (Attempts, "wait", lambda job, fence, key, *_: key),
    (Attempts, "take_signal", lambda job, key, *_: key),
    (Attempts, "begin_undo", lambda job, fence, key, *_: key),
    (Attempts, "undone", lambda job, fence, key, *_: key),
    (Ledger, "transition", lambda session, job, state, **_: state),
]


def trace(world: World) -> None:
    """Make every write to the ledger pass a point before it and one after it."""

    async def then(work: Awaitable[Any], point: str) -> Any:
        result = await work
        world.point(point)
        return result

    def wrap(kind: type, method: str, name: Callable[..., str]) -> None:
        original = getattr(kind, method)

        def traced(self: Any, *args: Any, **more: Any) -> Awaitable[Any]:
            world.point(f"before {method} {name(*args)}")
            return then(original(self, *args, **more), f"after {method} {name(*args)}")

        setattr(kind, method, traced)

    for kind, method, name in _TRACED:
        wrap(kind, method, name)


async def main(url: str, world: World) -> None:
    database = Database(url, pool_size=4)
    hub = Hub(database)
    await hub.start()
    registry = Registry()
    registry.add(JOBS, world)
    engine = EmbeddedEngine(database, Ledger(database, hub), registry, lease=LEASE)
    await engine.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await ended.wait()
    await engine.close()
    await hub.close()
    await database.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--at")
    parser.add_argument("--signal", default="KILL")
    parser.add_argument("--host", help="pretend to be another machine: then only the lease tells who is alive")
    parser.add_argument("--otlp", help="where spans go")
    given = parser.parse_args()
    if given.host is not None:
        claims.machine_identity = lambda: given.host
    log.configure(json=True, stream=sys.stderr)  # as the services do: rendering a traceback must not take seconds
    traces.start(given.otlp, service="worker")
    made = World(given.folder, given.at, signal.Signals[f"SIG{given.signal}"])
    trace(made)
    asyncio.run(main(given.url, made))

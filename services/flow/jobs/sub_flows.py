"""The sub-flows of one execution: started, waited for, and stopped when it fails while they run.

Each is an execution of its own, which the app starts. Of those that this one leaves behind all the same (its process died
on the way, or it was cancelled), the app ends what is left: `services.app.flows.orphans`.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace

from services.flow.jobs.steps import Child, finish_child, start_child, stop_child
from shared.contracts.flows import ChildStarted, TaskDone, child_event
from shared.jobs.run import Run, StepFailed


class SubFlows:
    """`_living` has those that were started and are not known to have ended, by the keys of their places."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._attempt = f":{run.attempt}" if run.attempt > 1 else ""  # with each they are looked at anew
        self._living: dict[str, Child] = {}
        self._stopped: set[str] = set()

    async def result(self, child: Child, *, may_fail: bool, is_wanted: Callable[[], bool]) -> TaskDone:
        """What a sub-flow gives at its end. `is_wanted`: whether what it is a part of still goes on."""
        key = child.task
        start = replace(start_child, may_fail=may_fail)
        started: ChildStarted = await self._run.step(start, child, key=f"{key}:start{self._attempt}")
        if started.live:
            self._living[key] = child
            if not is_wanted():
                await self._stop(key, child)
            await self._run.wait_event(child_event(key), key=f"{key}:wait{self._attempt}")
        self._living.pop(key, None)
        # One that was stopped for the failure of another is not passed over for good: a retry runs it again.
        finish = replace(finish_child, may_fail=may_fail and key not in self._stopped)
        done: TaskDone = await self._run.step(finish, child, key=key)
        return done

    async def stop(self, loop: str | None = None) -> None:
        """Have those end that are under way: all, or those of a loop."""
        for key, child in list(self._living.items()):
            if key in self._living and (loop is None or key.startswith(f"{loop}[")):
                await self._stop(key, child)

    async def _stop(self, key: str, child: Child) -> None:
        if key in self._stopped:
            return
        self._stopped.add(key)
        with contextlib.suppress(StepFailed):  # then it ends when this execution has
            await self._run.step(stop_child, child, key=f"{key}:stop{self._attempt}")

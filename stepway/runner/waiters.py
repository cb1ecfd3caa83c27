"""When `ctx.wait_for_event(timeout=…)` is to give up, also after a restart.

The library arms that timer once, as the wait begins, and not again in a run that goes on from a journal.
"""

import json
from collections.abc import Iterator

from workflows.runtime.types.internal_state import BrokerState
from workflows.runtime.types.results import AddWaiter, DeleteWaiter
from workflows.runtime.types.step_id import StepId
from workflows.runtime.types.ticks import TickStepResult, TickWaiterTimeout, WorkflowTick


class Waiters:
    """The deadlines of one run's waits, by step and waiter; seconds since the epoch."""

    def __init__(self, stored: str | None = None) -> None:
        self._deadlines: dict[tuple[str, str], float] = {
            (step, waiter): deadline for step, waiter, deadline in json.loads(stored or "[]")
        }

    def see(self, tick: WorkflowTick) -> None:
        """Take in what a step's result says of its waits. A step that runs again may ask for one that it has: that goes on."""
        if not isinstance(tick, TickStepResult) or tick.invocation_namespace:
            return
        for result in tick.result:
            if isinstance(result, AddWaiter) and result.timeout is not None and tick.stamped_at is not None:
                self._deadlines.setdefault((str(tick.step_id), result.waiter_id), tick.stamped_at + result.timeout)
            elif isinstance(result, DeleteWaiter):
                self._deadlines.pop((str(tick.step_id), result.waiter_id), None)

    def pending(self, state: BrokerState) -> Iterator[tuple[float, TickWaiterTimeout]]:
        """Deadlines of waits that are neither answered nor over, with the tick that ends them."""
        for step_id, worker in state.workers.items():
            for waiter in worker.collected_waiters:
                deadline = self._deadlines.get((str(step_id), waiter.waiter_id))
                if deadline is not None and waiter.resolved_event is None and not waiter.timed_out:
                    yield deadline, TickWaiterTimeout(step_id=StepId.root(str(step_id)), waiter_id=waiter.waiter_id)

    def stored(self) -> str:
        return json.dumps([[step, waiter, deadline] for (step, waiter), deadline in self._deadlines.items()])

"""What of a `ctx.wait_for_event` has to outlast a restart, beside what the library keeps: its deadline and its requirements.

The library arms the timer once, as the wait begins, and not again in a run that goes on from a journal. A snapshot of its has
no requirements: it runs the step again to learn them, and takes any event that comes before for the one waited for.
"""

import json
from collections.abc import Iterator, Sequence

from workflows.context.serializers import BaseSerializer
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


def requirements(state: BrokerState, serializer: BaseSerializer) -> list[tuple[str, str, str]]:
    """Of each wait that has some: step, waiter, and what it requires as the serializer writes it."""
    return [
        (str(step_id), waiter.waiter_id, serializer.serialize(waiter.requirements))
        for step_id, worker in state.workers.items()
        for waiter in worker.collected_waiters
        if waiter.requirements
    ]


def require(state: BrokerState, kept: Sequence[Sequence[str]], serializer: BaseSerializer) -> None:
    """Give the waits of a state that was read back their requirements again."""
    found = {(step, waiter): text for step, waiter, text in kept}
    for step_id, worker in state.workers.items():
        for waiter in worker.collected_waiters:
            if (text := found.get((str(step_id), waiter.waiter_id))) is not None:
                waiter.requirements = serializer.deserialize(text)

"""Which task waits for which. Linear in the number of tasks and references."""

from collections import deque
from collections.abc import Iterator, Mapping

from shared.flows.conditions import compile_condition, uses
from shared.flows.definition import Flow, Task
from shared.flows.faults import Faults
from shared.flows.references import Reference, compile_plain


class Cycle(ValueError):
    """Tasks wait for each other. `tasks`: one circle, each waits for the next, the last one for the first."""

    def __init__(self, tasks: list[str]) -> None:
        super().__init__(" → ".join([*tasks, tasks[0]]))
        self.tasks = tasks


def needs(flow: Flow) -> dict[str, set[str]]:
    """For each task the ones that must have ended before: those that it refers to and `depends_on`.

    In a sequential flow also the one before it. Names of tasks that the flow does not have are left out.
    """
    known = {task.name for task in flow.tasks}
    found: dict[str, set[str]] = {}
    before: str | None = None
    for task in flow.tasks:
        mine = {one.task for one in references(task) if one.task is not None} | set(task.depends_on)
        if flow.execution == "sequential" and before is not None:
            mine.add(before)
        found[task.name] = mine & known
        before = task.name
    return found


def references(task: Task) -> Iterator[Reference]:
    """All references of a task: in its inputs (with the body of a loop), its condition and its fallback."""
    faults = Faults()
    yield from compile_plain(task.inputs, "", faults).references
    yield from compile_plain(task.fallback, "", faults).references
    yield from (use.reference for use in uses(compile_condition(task.condition, "", faults)))


def order(needed: Mapping[str, set[str]]) -> list[str]:
    """The tasks, each after those that it needs, else as they are listed. Raises `Cycle`."""
    waiting = {task: len(others) for task, others in needed.items()}
    followers: dict[str, list[str]] = {task: [] for task in needed}
    for task, others in needed.items():
        for other in others:
            followers[other].append(task)
    ready = deque(task for task, number in waiting.items() if number == 0)
    ordered = []
    while ready:
        task = ready.popleft()
        ordered.append(task)
        for follower in followers[task]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                ready.append(follower)
    if len(ordered) < len(needed):
        raise Cycle(_circle(needed, {task for task, number in waiting.items() if number}))
    return ordered


def _circle(needed: Mapping[str, set[str]], stuck: set[str]) -> list[str]:
    """One circle among tasks of which each needs another one of them."""
    at = next(task for task in needed if task in stuck)
    seen: dict[str, int] = {}
    trail: list[str] = []
    while at not in seen:
        seen[at] = len(trail)
        trail.append(at)
        at = min(needed[at] & stuck)
    return trail[seen[at] :]

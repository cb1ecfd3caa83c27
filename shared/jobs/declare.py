"""How a job is declared: steps, their retry policies and undos, and the registry that an engine runs from.

A job is an async function over a `Run`; what it does happens in steps. See `shared.jobs.run` for both interfaces.
"""

import inspect
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import TypeAdapter

MAX_DATA_BYTES = 64 * 1024  # of what a step takes and returns, and of a job's input where it says nothing else

Undo = Callable[..., Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds throughout. `timeout` bounds one attempt; `attempts` counts the first one too.

    `jitter` is the share of a pause by which it may be longer, at random, so that many do not come back at once.
    """

    attempts: int = 3
    delay: float = 1.0
    multiplier: float = 2.0
    max_delay: float = 60.0
    timeout: float | None = None
    jitter: float = 0.0

    def backoff(self, tries: int) -> float:
        """The pause after the given number of tries."""
        pause = min(self.delay * self.multiplier ** max(tries - 1, 0), self.max_delay)
        return float(pause * (1 + self.jitter * random.random()))  # noqa: S311  # no secret


ONCE = RetryPolicy(attempts=1)


@dataclass(frozen=True, slots=True)
class StepDef:
    """A step: `async (Step, argument) -> result`. `weight` is its share of the job's percent.

    `may_fail`: the job goes another way when it has failed, and still does when the job is retried.

    `name` is where its function is, which is the same in every process that has the code.
    """

    name: str
    key: str
    title: str
    fn: Callable[..., Awaitable[Any]]
    retry: RetryPolicy
    undo: Undo | None
    weight: float
    argument: TypeAdapter[Any]
    result: TypeAdapter[Any]
    may_fail: bool = False

    def dump(self, value: Any) -> Any:
        return self.result.dump_python(value, mode="json")


_STEPS: dict[str, StepDef] = {}


def step_named(name: str) -> StepDef:
    """A step that this process has the code of. Raises KeyError."""
    return _STEPS[name]


def step(
    title: str,
    *,
    retry: RetryPolicy = RetryPolicy(),
    undo: Undo | None = None,
    weight: float = 1.0,
    key: str | None = None,
) -> Callable[[Callable[..., Awaitable[Any]]], StepDef]:
    """Declare a step. It must be idempotent: it may run again after a crash in its midst.

    `undo(step, argument, result_or_None)` takes back what the step may have done, also when it ended half-way;
    it is idempotent too.
    """

    def wrap(fn: Callable[..., Awaitable[Any]]) -> StepDef:
        name = f"{fn.__module__}:{fn.__qualname__}"
        hints = get_type_hints(fn)
        taken = list(inspect.signature(fn).parameters)[1:]
        argument = hints[taken[0]] if taken else type(None)
        result = TypeAdapter(hints.get("return", Any))
        found = StepDef(name, key or fn.__name__, title, fn, retry, undo, weight, TypeAdapter(argument), result)
        _STEPS[name] = found
        return found

    return wrap


@dataclass(frozen=True, slots=True)
class JobDef:
    """A kind of job at one version. `slots` is how many of it one process runs at a time; `max_input` is in bytes of JSON."""

    kind: str
    version: int
    fn: Callable[..., Awaitable[Any]]
    steps: tuple[StepDef, ...]
    undo_on_failure: bool
    slots: int
    deadline: float | None
    input: TypeAdapter[Any]
    result: TypeAdapter[Any]
    max_input: int = MAX_DATA_BYTES


def job(
    kind: str,
    *,
    steps: Sequence[StepDef] = (),
    version: int = 1,
    undo_on_failure: bool = False,
    slots: int = 4,
    deadline: float | None = None,
    max_input: int = MAX_DATA_BYTES,
) -> Callable[[Callable[..., Awaitable[Any]]], JobDef]:
    """Declare a job. The listed steps are announced when it is made; see `JobRequest.steps` for
    those that depend on its input."""

    def wrap(fn: Callable[..., Awaitable[Any]]) -> JobDef:
        hints = get_type_hints(fn)
        names = list(inspect.signature(fn).parameters)
        argument = hints.get(names[1], Any) if len(names) > 1 else Any
        keys = [one.key for one in steps]
        if len(set(keys)) != len(keys):
            raise ValueError(f"{kind}: two steps have one key")
        returns = hints.get("return", Any)
        return JobDef(
            kind,
            version,
            fn,
            tuple(steps),
            undo_on_failure,
            slots,
            deadline,
            TypeAdapter(argument),
            TypeAdapter(returns),
            max_input,
        )

    return wrap


@dataclass(slots=True)
class Registry:
    """The jobs that a process can run, each with the tools that its steps reach the world with."""

    _jobs: dict[tuple[str, int], tuple[JobDef, Any]] = field(default_factory=dict)

    def add(self, jobs: Iterable[JobDef], tools: Any) -> None:
        for one in jobs:
            if (one.kind, one.version) in self._jobs:
                raise ValueError(f"{one.kind} v{one.version} is declared twice")
            self._jobs[one.kind, one.version] = (one, tools)

    def find(self, kind: str, version: int) -> tuple[JobDef, Any]:
        return self._jobs[kind, version]

    def latest(self, kind: str) -> JobDef:
        """The highest version of a kind: what new jobs are made of. Processes claim only the versions that they know."""
        return self._jobs[kind, max(version for known, version in self._jobs if known == kind)][0]

    def all(self) -> list[JobDef]:
        return [one for one, _ in self._jobs.values()]

    def announced(self) -> dict[str, list[int]]:
        """`{kind: its versions}`."""
        kinds: dict[str, list[int]] = {}
        for kind, version in sorted(self._jobs):
            kinds.setdefault(kind, []).append(version)
        return kinds

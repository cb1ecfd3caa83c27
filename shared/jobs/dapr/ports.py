"""What the app and the services that run jobs say to each other.

`JobsPort` is the ledger, as the app serves it; `RunsPort` is a worker service, as the app calls it. Every report carries
the fence of its run: one that is no longer the run's is refused (`StaleFence`).
"""

from typing import Any, Literal, Protocol
from uuid import UUID

from pydantic import BaseModel


class Memory(BaseModel):
    """What the ledger knows of a step (see `shared.jobs.claims.StepMemory`). `kept`: its result is here; else it comes when
    the step is begun.
    """

    state: str
    begun: bool
    may_have_effects: bool
    result: Any = None
    error: dict[str, Any] | None = None
    kept: bool = True


class RunOrder(BaseModel):
    """A run that a service is to drive: the input of the workflow. It holds no secret, as no job's input does."""

    job_id: UUID
    kind: str
    version: int
    fence: int
    attempt: int
    phase: str
    input: Any
    error: dict[str, Any] | None
    overdue: bool  # the job was past its deadline when this was made
    steps: dict[str, Memory]
    topic: UUID | None = None
    traceparent: str | None = None

    @property
    def instance(self) -> str:
        return instance_id(self.job_id, self.fence)


class Begin(BaseModel):
    """How a step begins: with an attempt, or with what it has returned before."""

    token: UUID | None = None
    number: int = 0
    tries: int = 0
    result: Any = None  # where there is no token


class Working(BaseModel):
    """An attempt that is being worked on. `undo`: it takes back, and is stopped by nothing but a lost run."""

    job_id: UUID
    fence: int
    key: str
    token: UUID
    undo: bool = False


class Stop(BaseModel):
    """An attempt that must not go on."""

    token: UUID
    reason: Literal["cancelled", "overdue", "stale"]


class Replica(BaseModel):
    """A process of a service. `host`, `pid` and `started` tell it from every other one."""

    id: UUID
    service: str
    host: str
    pid: int
    started: str
    kinds: dict[str, list[int]]  # the versions that it knows


class Signal(BaseModel):
    """Whether an event has come for a wait, its data, and else the seconds that are left; None: no limit."""

    taken: bool
    data: Any = None
    left: float | None = None


class JobsPort(Protocol):
    """The ledger. A report that is repeated, because its answer was lost, is taken once."""

    async def join(self, replica: Replica) -> None:
        """Announce a process that drives runs. It is alive while it calls `beat`."""

    async def leave(self, process: UUID) -> None: ...

    async def beat(self, process: UUID, working: list[Working]) -> list[Stop]:
        """Say that these attempts are worked on; returns, within about a second, those that are to stop.

        Raises `Permanent` (`process_unknown`) when the process is taken for dead: it joins again.
        """

    async def hold(self, process: UUID, name: str) -> int | None:
        """Take or keep a named duty: its epoch, or None while another living process has it."""

    async def begin(self, job: UUID, fence: int, key: str, title: str, weight: float) -> Begin:
        """Raises `CancelRequested` when the job is to be undone by now."""

    async def succeed(self, job: UUID, fence: int, key: str, token: UUID, result: Any) -> None: ...

    async def fail(
        self, job: UUID, fence: int, key: str, token: UUID, error: dict[str, Any], again: bool, after: float
    ) -> None:
        """`again`: it will be tried again, after so many seconds."""

    async def progress(
        self, job: UUID, fence: int, key: str, token: UUID, percent: float | None, message: str | None
    ) -> None: ...

    async def wait(self, job: UUID, fence: int, key: str, seconds: float | None, event: str | None) -> Signal:
        """Record when a wait ends, and take the event that it waits for, if that has come."""

    async def begin_undo(self, job: UUID, fence: int, key: str) -> Begin:
        """`tries`: how often it has begun since it last ended; `result`: what the step returned, if it did."""

    async def undone(self, job: UUID, fence: int, key: str) -> None: ...

    async def undo_failed(self, job: UUID, fence: int, key: str, error: dict[str, Any]) -> None: ...

    async def end_succeeded(self, job: UUID, fence: int, result: Any) -> None: ...

    async def end_failed(self, job: UUID, fence: int, error: dict[str, Any], undo: bool) -> None:
        """With `undo`, the run is given back to be undone."""

    async def end_parked(self, job: UUID, fence: int, seconds: float | None, names: list[str]) -> None:
        """Nothing of it can go on before the time is over, or one of these events has come."""

    async def end_undone(
        self, job: UUID, fence: int, left: list[dict[str, Any]], failure: dict[str, Any] | None
    ) -> None: ...

    async def release(self, job: UUID, fence: int) -> None:
        """Give the run back, to be driven from here on by whoever takes it: forward, or to undo it."""


class RunsPort(Protocol):
    """A service that drives runs. Its workflow engine keeps them; any replica answers."""

    async def start_run(self, order: RunOrder) -> None:
        """Begin to drive a run. Starting it again does nothing."""

    async def wake(self, instance: str) -> None:
        """An event has come for the run: what waits for it beside other work looks again."""

    async def forget(self, instance: str, stale: bool) -> bool:
        """Let the workflow engine forget a run that has ended, or (`stale`) that is no longer its own. False: not yet."""


def instance_id(job_id: UUID, fence: int) -> str:
    """Of the workflow that drives a run. Each time that a run is given away it has another fence, and another workflow."""
    return f"{job_id}.{fence}"


def workflow_name(kind: str, version: int) -> str:
    return f"{kind}.v{version}"

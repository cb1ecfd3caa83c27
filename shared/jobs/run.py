"""What a job and its steps may use. An engine implements both; a job function runs unchanged on any engine."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import UUID

from shared.jobs.declare import StepDef

T = TypeVar("T")


class Step(Protocol):
    """One attempt of a step, as the step's own function sees it."""

    job_id: UUID
    key: str
    attempt: int
    tools: Any

    def progress(self, percent: float | None = None, message: str | None = None) -> None:
        """Tell readers how far it is (0 to 100). Cheap; written at most twice a second. From the event loop only."""


class Run(Protocol):
    """What a job function may await, and nothing else: so it can be driven again from its remembered results.

    Keys must be the same each time the function is driven. A step's result comes back as the type it was declared with.
    """

    job_id: UUID
    attempt: int

    async def step(self, definition: StepDef, argument: Any = None, *, key: str | None = None) -> Any:
        """Run a step, or return its remembered result. Raises `StepFailed` when it has failed for good."""

    async def gather(self, *branches: Awaitable[Any]) -> list[Any]:
        """Run branches side by side; all of them end before the first failure is raised."""

    def latch(self) -> "Latch":
        """A latch for branches of one `gather`: some wait until another one opens it."""

    async def sleep(self, seconds: float, *, key: str) -> None:
        """Wait without holding a lease or a slot."""

    async def wait_event(self, name: str, *, key: str, timeout: float | None = None) -> Any:
        """Wait for `send_event(job, name, data)`; returns the data. Raises `StepFailed` (`timed_out`) after `timeout` seconds."""


class Latch(Protocol):
    """Closed until a branch opens it. One that fails must open it too: branches that wait for nobody end the run."""

    def open(self) -> None: ...

    async def passed(self) -> None:
        """Wait until it is open. The slot is given up when all branches wait, here or for time or events."""


class NeverOpened(Exception):
    """All branches wait for latches that none of them can open: a fault of the job."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step that is announced with its job, as only the job's input tells of it."""

    key: str
    title: str
    weight: float = 1.0


class StepFailed(Exception):
    """A step has failed for good. A job may catch it and go another way; uncaught it fails the job."""

    def __init__(self, key: str, code: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.code = code
        self.message = message

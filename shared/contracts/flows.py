"""What the app and the flow service say to each other about executions: the job `run_flow`, and what it asks of the app."""

from typing import Any, Literal, Protocol
from uuid import UUID

from pydantic import BaseModel, Field, field_serializer

from shared.flows.definition import Flow
from shared.flows.dialects.words import DialectName

RUN_FLOW = "run_flow"
MAX_RUN_INPUT = 1024 * 1024  # bytes of a `FlowRun` as JSON
MAX_INPUTS = 64 * 1024  # bytes of all inputs of one execution as JSON
MAX_DEPTH = 5  # executions within each other, the first one included
ALL_OUTPUTS = (
    ":outputs"  # the step that keeps the outputs of the whole flow where the result does not show them as they are
)

Json = Any


class FlowRun(BaseModel):
    """The job's input: a snapshot. `credentials`: those that the definition or the inputs name, checked at the start.
    `dialect`: the one that the definition was written in.
    """

    flow_id: UUID
    version: int
    flow: Flow
    inputs: dict[str, Json] = {}
    credentials: list[UUID] = []
    dialect: DialectName = "refs"

    @field_serializer("flow")
    def _compact(self, flow: Flow) -> dict[str, Any]:
        """As it is stored with its version: every change of the job's state carries the job's input."""
        return flow.model_dump(mode="json", exclude_defaults=True)


class TaskDone(BaseModel):
    """What a task's step returns, and keeps. The step's key is the task's name; that of item 3 of a loop is `name[3]`."""

    status: Literal["completed", "skipped"] = "completed"
    outputs: dict[str, Json] = {}
    reason: str | None = None


class FlowResult(BaseModel):
    """What everybody may see of the outputs: secrets are masked."""

    outputs: dict[str, Json] = {}


class ArtifactInfo(BaseModel):
    """A stored file of an execution. Its bytes are the blob of that sha256; `size` in bytes."""

    id: UUID
    name: str
    media_type: str
    size: int
    sha256: str


class FlowPort(Protocol):
    """What an execution's job asks of the app, beside credentials (`AppPort.credential`).

    Each call names the job, which must be a living `run_flow`. Faults are `Permanent` or `Retry`.
    """

    async def provider_key(self, job_id: UUID) -> str | None:
        """The key that came with the execution in the header X-Provider-Key; None when none did. Never kept."""

    async def keep_artifact(self, job_id: UUID, task: str, name: str, media_type: str, size: int, sha256: str) -> UUID:
        """Name a blob that has been stored a file of the execution, so that it stays; the same file has one id.

        `Retry` (`artifact_gone`) when the bytes are not there (any more): store them again.
        """

    async def artifact(self, job_id: UUID, artifact_id: UUID) -> ArtifactInfo:
        """A file of any execution of the job's project. `Permanent` (`artifact_gone`) when there is none."""

    async def endpoint(self, job_id: UUID, endpoint: str) -> "EndpointAccess":
        """How a deployed endpoint of the job's project, by its id or name, is called. `Permanent` (`endpoint_gone`)."""

    async def start_child(
        self, job_id: UUID, task: str, workflow_id: str, version: int | None, inputs: dict[str, Json]
    ) -> "ChildStarted":
        """Start a flow of the same project as a part of this execution; the same task has one child.

        In a new attempt of the parent's job, one that has failed is run again from its failed task, another one is started
        in place of one that was cancelled, and a failure that was passed over is raised again. When a living child has
        ended, the parent is sent the event `child_event(task)`. `Permanent`: `flow_gone`, `flow_input_invalid`,
        `flow_too_deep`; `Retry`: `too_many_executions`.
        """

    async def child_end(self, job_id: UUID, task: str) -> "ChildEnd":
        """The task's child as it is now. `Permanent` (`child_gone`) when there is none."""

    async def cancel_child(self, job_id: UUID, task: str) -> None:
        """Ask a living child to end; fine when there is none. Of a job that has failed, or is being undone."""


class EndpointAccess(BaseModel):
    """An OpenAI-compatible base URL, and a key that ends with the job."""

    base_url: str
    key: str = Field(repr=False)


class ChildStarted(BaseModel):
    """`live`: it has not ended."""

    execution_id: UUID
    live: bool


class ChildEnd(BaseModel):
    """`execution_id` as people see it. `error` is that of the child's job."""

    execution_id: str
    status: Literal["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"]
    outputs: dict[str, Json] = {}
    error: dict[str, Any] | None = None


def child_event(task: str) -> str:
    return f"child:{task}"

"""What workflow servers send, and how servers and runs look on the wire."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, Field, StrictBool

from services.app.resources import text_of
from services.app.wizards.fields import FilledText, Name
from services.app.workflow_servers.tables import WorkflowRunRow, WorkflowServerRow
from shared.clock import iso

MOST_CHANGES = 500  # runs in one report
MOST_WORKFLOWS = 200
Status = Literal["running", "completed", "failed", "cancelled"]
RunIds = Annotated[list[FilledText], Field(max_length=MOST_CHANGES)]


class Body(BaseModel):
    model_config = {"extra": "forbid"}


class WorkflowIn(Body):
    """`start_schema` is a JSON Schema; `events` are the names of those that may be sent to a run."""

    name: FilledText
    start_schema: dict[str, Any] | None = None
    events: Annotated[list[FilledText], Field(max_length=200)] = []


class ServerIn(Body):
    """`instance` says where the runs are kept; `process` which process has them, where they are in its memory only."""

    name: Name
    instance: FilledText
    process: FilledText | None = None
    project_id: UUID | None = None
    url: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^https?://[!-~]+$")] | None = None
    version: FilledText | None = None
    workflows: Annotated[list[WorkflowIn], Field(max_length=MOST_WORKFLOWS)] = []


class RunIn(Body):
    """A run as it is now. `started_key_id`: the key with which it was asked for, where the server knows."""

    handler_id: FilledText
    run_id: FilledText
    workflow: FilledText
    status: Status
    error: Annotated[str, Field(max_length=1000)] | None = None
    started_at: AwareDatetime
    updated_at: AwareDatetime
    completed_at: AwareDatetime | None = None
    started_key_id: UUID | None = None


class ReportIn(Body):
    """`position` replaces the one that is kept when that is still `after`. `gone` are runs that the server has no more."""

    process: FilledText | None = None
    after: FilledText | None = None
    position: FilledText | None = None
    changes: Annotated[list[RunIn], Field(max_length=MOST_CHANGES)] = []
    gone: RunIds = []
    taken: Annotated[list[UUID], Field(max_length=MOST_CHANGES)] = []  # commands that have been carried out
    stopping: StrictBool = False


def server_view(server: WorkflowServerRow) -> dict[str, Any]:
    since = {"online": server.online_since, "offline": server.seen_at, "stopped": server.stopped_at}[server.state]
    return {
        "object": "workflow_server",
        "id": str(server.id),
        "project_id": str(server.project_id),
        "name": server.name,
        "instance": server.instance,
        "durable": server.process is None,
        "url": server.url,
        "version": server.version,
        "state": server.state,
        "state_since": iso(since),
        "workflows": [one["name"] for one in server.workflows],
        "owner_id": str(server.owner_id),
        "seen_at": iso(server.seen_at),
        "created_at": iso(server.created_at),
        "updated_at": iso(server.updated_at),
        "revision": server.revision,
    }


def run_view(run: WorkflowRunRow, server_name: str, server_state: str) -> dict[str, Any]:
    """`cancel` is null until somebody asks for it; its state is `asked`, then `taken` by the server, then `over`."""
    return {
        "object": "workflow_run",
        "id": str(run.id),
        "project_id": str(run.project_id),
        "server_id": str(run.server_id),
        "server": server_name,
        "server_state": server_state,
        "workflow": run.workflow,
        "handler_id": run.handler_id,
        "run_id": run.run_id,
        "status": run.status,
        "error": run.error,
        "started_by": text_of(run.started_by),
        "started_key_id": text_of(run.started_key_id),
        "cancel": _cancel(run),
        "started_at": iso(run.started_at),
        "updated_at": iso(run.updated_at),
        "completed_at": iso(run.completed_at),
        "confirmed_at": iso(run.confirmed_at),
    }


def _cancel(run: WorkflowRunRow) -> dict[str, Any] | None:
    if run.cancel_asked_at is None:
        return None
    state = "over" if run.status != "running" else "asked" if run.cancel_taken_at is None else "taken"
    return {"state": state, "asked_at": iso(run.cancel_asked_at), "asked_by": text_of(run.cancel_asked_by)}

"""What is announced, and when: every change of a job's state, of an endpoint's, of an execution's.

Nothing is written while nobody in the project asks for it. `Outcome` calls the hook of jobs; an endpoint's changes are
seen where its row is written, whoever changed it.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from uuid import UUID

import structlog
from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper

from services.app.context import AppContext
from services.app.endpoints import service as endpoints
from services.app.endpoints.tables import EndpointRow
from services.app.webhooks.names import EXECUTION_STATES
from services.app.webhooks.outbox import Receiver, Topic, announce, announce_blocking, subscribed
from shared.jobs.ledger import JobView

log = structlog.get_logger(__name__)

_SEQUENCE = text("SELECT event_seq FROM jobs.job WHERE id = :id")


class JobAnnouncer:
    """Tells of a job's new state: the view of GET /jobs/{id}. Jobs of no project are nobody's to hear of.

    Like all that a job's end means for our rows, it must not keep the job from ending.
    """

    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def __call__(self, session: AsyncSession, job: JobView, _spec: dict[str, Any]) -> None:
        if job["project_id"] is None:
            return
        project_id, job_id, told = UUID(job["project_id"]), UUID(job["id"]), f"job.{job['state']}"
        receivers = await subscribed(session, project_id, told)
        if not receivers:
            return
        try:
            async with session.begin_nested():
                topic = await _topic(session, project_id, job_id)
                await announce(self._context.hub, session, topic, told, job, receivers)
        except (OperationalError, InterfaceError):  # the database is away: the engine waits for it
            raise
        except Exception:
            log.exception("job_not_announced", job=job["id"], state=job["state"])


class ExecutionChange(Protocol):
    """An execution's new status (RUNNING, COMPLETED, FAILED, CANCELLED), as `services.app.flows.outcomes` tells of it."""

    @property
    def id(self) -> UUID: ...
    @property
    def project_id(self) -> UUID: ...
    @property
    def status(self) -> str: ...
    @property
    def webhook_url(self) -> str | None: ...
    @property
    def view(self) -> Callable[[], Awaitable[dict[str, Any]]]: ...


async def announce_execution(context: AppContext, session: AsyncSession, change: ExecutionChange) -> None:
    """To the webhooks of the project, and to the address that the execution was started with. That it waits is not told."""
    status = change.status.lower()
    if status not in EXECUTION_STATES:
        return
    told = f"execution.{status}"
    receivers = await subscribed(session, change.project_id, told)
    if change.webhook_url is not None:
        receivers.append(Receiver(None, change.webhook_url))
    if receivers:
        topic = await _topic(session, change.project_id, change.id)
        await announce(context.hub, session, topic, told, await change.view(), receivers)


async def _topic(session: AsyncSession, project_id: UUID, job_id: UUID) -> Topic:
    """A job, or the execution that it is, as it stands now."""
    return Topic(project_id, job_id, await session.scalar(_SEQUENCE, {"id": job_id}) or 0)


def _endpoint_written(_mapper: Mapper[Any], connection: Connection, endpoint: EndpointRow) -> None:
    """Tell of an endpoint whose shown state is another one now. Who changes it wakes the hub's `endpoints`."""
    if inspect(endpoint).attrs.state.history.has_changes():
        topic = Topic(endpoint.project_id, endpoint.id, endpoint.revision or 1)
        announce_blocking(connection, topic, f"endpoint.{endpoint.state}", endpoints.view(endpoint))


event.listen(EndpointRow, "after_insert", _endpoint_written)
event.listen(EndpointRow, "after_update", _endpoint_written)

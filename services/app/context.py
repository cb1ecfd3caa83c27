"""What the app's parts work with, put together once by the assembly and handed to every request."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol
from uuid import UUID

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from shared.contracts.clusters import Orphan
from shared.contracts.deployments import DeploySpec
from shared.contracts.previews import DeployPreview
from shared.db.engine import Database
from shared.jobs.declare import Registry
from shared.jobs.feed import Feeds
from shared.jobs.hub import Hub
from shared.jobs.ledger import Ledger
from shared.objects.store import ObjectStore
from shared.security.envelope import Keyring
from shared.settings import Settings
from stepway.tasks import TaskType

TRIGGERS = 4  # of wizards, that this process works on at a time


@dataclass(slots=True)
class AppContext:
    """`triggers` lets the others wait where they hold nothing: those of one project would queue at its row in the
    database, each with a connection, until some had waited for too long.
    """

    settings: Settings
    database: Database
    hub: Hub
    ledger: Ledger
    feeds: Feeds
    keyring: Keyring
    objects: ObjectStore
    jobs: Registry
    logs: "WorkerLogs"
    clusters: "ClusterReach"
    task_types: Mapping[str, TaskType] = field(default_factory=dict)  # of flows, by their names
    triggers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(TRIGGERS))


class WorkerLogs(Protocol):
    """Where the logs of an endpoint's workers are read."""

    def lines(
        self, cluster_id: UUID, endpoint_id: UUID, ordinal: int | None, tail: int, follow: bool
    ) -> AsyncIterator[str]:
        """Lines of one worker or of all, oldest first; with `follow` also each new one."""


class ClusterReach(Protocol):
    """What a request may ask of registered clusters themselves. Problems `cluster_…` where one does not answer."""

    async def leftovers(self, cluster_id: UUID) -> list[Orphan]:
        """All endpoints of which something of this installation is on the cluster."""

    async def identity(self, kubeconfig: bytes) -> str | None:
        """The UID of a cluster that is not registered yet, by its checked kubeconfig, within a few seconds. None where that
        is too short, or the answer is any other: the job says why. No problem.
        """

    async def preview(self, spec: DeploySpec) -> DeployPreview:
        """What the deployment would be. Makes nothing, and opens no secret but the cluster's own credentials."""


async def get_context(request: Request) -> AppContext:
    """No plain function: FastAPI would run that in a thread, as it does with all plain dependencies."""
    context: AppContext = request.app.state.context
    return context


Context = Annotated[AppContext, Depends(get_context)]


async def get_session(context: Context) -> AsyncIterator[AsyncSession]:
    async with context.database.transaction() as session:
        yield session


# Committed before the answer is sent: with a wider scope the teardown would run after it.
Session = Annotated[AsyncSession, Depends(get_session, scope="function")]

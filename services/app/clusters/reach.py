"""Asks the cluster service what requests want to know of clusters themselves, and opens them for it.

What a cluster refuses becomes the request's problem.
"""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

from services.app.clusters import onboarding, repository
from services.app.context import AppContext
from services.app.credentials import service as credentials
from shared.contracts.clusters import Orphan
from shared.contracts.deployments import DeploySpec
from shared.contracts.ports import ReachPort
from shared.contracts.previews import DeployPreview
from shared.contracts.reach import ClusterAccess
from shared.error_codes import CODES
from shared.errors import Problem
from shared.jobs.outcomes import StepError

IDENTITY_SECONDS = 3.0  # that a trigger waits for it, the way to the cluster service included


class Reached:
    """Implements `WorkerLogs` and `ClusterReach` of the app's context, which it is given by `use`."""

    _context: AppContext
    _clusters: ReachPort

    def use(self, context: AppContext, clusters: ReachPort) -> None:
        self._context = context
        self._clusters = clusters

    async def lines(
        self, cluster_id: UUID, endpoint_id: UUID, ordinal: int | None, tail: int, follow: bool
    ) -> AsyncIterator[str]:
        try:
            async for line in self._clusters.lines(await self._open(cluster_id), endpoint_id, ordinal, tail, follow):
                yield line
        except StepError as fault:
            raise _problem(fault) from fault

    async def leftovers(self, cluster_id: UUID) -> list[Orphan]:
        try:
            return await self._clusters.leftovers(await self._open(cluster_id))
        except StepError as fault:
            raise _problem(fault) from fault

    async def identity(self, kubeconfig: bytes) -> str | None:
        try:
            async with asyncio.timeout(IDENTITY_SECONDS):
                return await self._clusters.identity(kubeconfig)
        except (StepError, TimeoutError):
            return None

    async def preview(self, spec: DeploySpec) -> DeployPreview:
        parameters: list[str] = []
        if spec.credential_id is not None:
            async with self._context.database.transaction() as session:
                parameters = await credentials.parameter_names(session, spec.credential_id)
        try:
            return await self._clusters.preview(await self._open(spec.cluster_id), spec, parameters)
        except StepError as fault:
            raise _problem(fault) from fault

    async def _open(self, cluster_id: UUID) -> ClusterAccess:
        async with self._context.database.transaction() as session:
            cluster = await repository.get(session, cluster_id)
        if cluster is not None and cluster.kind == "local":
            return ClusterAccess(id=cluster_id, kind="local")
        if cluster is None or cluster.sealed is None:
            raise Problem("cluster_not_ready", "The cluster is not registered any more.")
        kubeconfig = self._context.keyring.open(cluster.sealed, onboarding.key_context(cluster_id))
        return ClusterAccess(id=cluster_id, kind="kubernetes", kubeconfig=kubeconfig, ingress_url=cluster.ingress_url)


def _problem(fault: StepError) -> Problem:
    return Problem(fault.code if fault.code in CODES else "unavailable", fault.message)

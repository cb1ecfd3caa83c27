"""What requests ask of clusters themselves: the logs of workers, wherever they are, what is left on a cluster, and what
a deployment would be there.
"""

from collections.abc import AsyncIterator
from uuid import UUID

from services.app.clusters import onboarding
from services.app.clusters import repository as clusters
from services.app.context import AppContext
from services.app.credentials import service as credentials
from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.base import LogLine, UnknownEndpoint
from services.cluster.sites import preview as previews
from services.cluster.sites.base import Site
from services.cluster.sites.kubernetes import KubernetesSite
from shared.contracts.clusters import Orphan
from shared.contracts.deployments import DeploySpec
from shared.contracts.previews import DeployPreview
from shared.error_codes import CODES
from shared.errors import Problem
from shared.jobs.outcomes import StepError


class Reach:
    """Implements `WorkerLogs` and `ClusterReach` of the app's context, which it is given by `use`."""

    _context: AppContext
    _tools: ClusterTools

    def use(self, context: AppContext, tools: ClusterTools) -> None:
        self._context = context
        self._tools = tools

    async def lines(
        self, cluster_id: UUID, endpoint_id: UUID, ordinal: int | None, tail: int, follow: bool
    ) -> AsyncIterator[str]:
        """A fault ends a followed log with a last line that tells of it: the answer has begun by then."""
        try:
            runtime = (await self._site(cluster_id)).runtime
            if follow:
                async for line in runtime.follow(str(endpoint_id), ordinal, tail):
                    yield _text(line)
            else:
                for line in await runtime.logs(str(endpoint_id), ordinal, tail):
                    yield _text(line)
        except UnknownEndpoint:
            return
        except StepError as fault:
            if not follow:
                raise _problem(fault) from fault
            yield f"The log ends here: {fault.message}"

    async def leftovers(self, cluster_id: UUID) -> list[Orphan]:
        try:
            return await (await self._kubernetes(cluster_id)).runtime.orphans(known=())
        except StepError as fault:
            raise _problem(fault) from fault

    async def preview(self, spec: DeploySpec) -> DeployPreview:
        parameters: list[str] = []
        async with self._context.database.transaction() as session:
            cluster = await clusters.get(session, spec.cluster_id)
            if spec.credential_id is not None:
                parameters = await credentials.parameter_names(session, spec.credential_id)
        if cluster is not None and cluster.kind == "local" and cluster.id != self._tools.local.id:
            raise Problem("cluster_not_ready", "This cluster is another machine; ask the Stepway that runs there.")
        try:
            return await previews.preview(await self._site(spec.cluster_id), spec, parameters)
        except StepError as fault:
            raise _problem(fault) from fault

    async def _site(self, cluster_id: UUID) -> Site:
        if cluster_id == self._tools.local.id:
            return self._tools.local
        async with self._context.database.transaction() as session:
            cluster = await clusters.get(session, cluster_id)
        if cluster is not None and cluster.kind == "local":  # another machine: nothing of it can be read here
            return self._tools.local
        return await self._kubernetes(cluster_id)

    async def _kubernetes(self, cluster_id: UUID) -> KubernetesSite:
        async with self._context.database.transaction() as session:
            cluster = await clusters.get(session, cluster_id)
        if cluster is None or cluster.sealed is None:
            raise Problem("cluster_not_ready", "The cluster is not registered any more.")
        kubeconfig = self._context.keyring.open(cluster.sealed, onboarding.key_context(cluster_id))
        return self._tools.kubernetes(cluster_id, kubeconfig, cluster.ingress_url)


def _text(line: LogLine) -> str:
    return f"{line.worker} {line.text}"


def _problem(fault: StepError) -> Problem:
    return Problem(fault.code if fault.code in CODES else "unavailable", fault.message)

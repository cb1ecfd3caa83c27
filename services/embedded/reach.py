"""What requests ask of clusters themselves: the logs of workers, wherever they are, and what is left on a cluster."""

from collections.abc import AsyncIterator
from uuid import UUID

from services.app.clusters import onboarding
from services.app.clusters import repository as clusters
from services.app.context import AppContext
from services.cluster.runtimes.base import LogLine, Runtime, UnknownEndpoint
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from services.cluster.runtimes.local.runtime import LocalRuntime
from services.cluster.sites.clients import Clients
from shared.contracts.clusters import Orphan
from shared.error_codes import CODES
from shared.errors import Problem
from shared.jobs.outcomes import StepError


class Reach:
    """Implements `WorkerLogs` and `ClusterReach` of the app's context, which it is given by `use`."""

    def __init__(self, machine: UUID, local: LocalRuntime, clients: Clients) -> None:
        self._machine = machine
        self._local = local
        self._clients = clients
        self._context: AppContext

    def use(self, context: AppContext) -> None:
        self._context = context

    async def lines(
        self, cluster_id: UUID, endpoint_id: UUID, ordinal: int | None, tail: int, follow: bool
    ) -> AsyncIterator[str]:
        """A fault ends a followed log with a last line that tells of it: the answer has begun by then."""
        try:
            runtime = await self._runtime(cluster_id)
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
            return await (await self._kubernetes(cluster_id)).orphans(known=())
        except StepError as fault:
            raise _problem(fault) from fault

    async def _runtime(self, cluster_id: UUID) -> Runtime:
        if cluster_id == self._machine:
            return self._local
        async with self._context.database.transaction() as session:
            cluster = await clusters.get(session, cluster_id)
        if cluster is not None and cluster.kind == "local":  # another machine: nothing of it can be read here
            return self._local
        return await self._kubernetes(cluster_id)

    async def _kubernetes(self, cluster_id: UUID) -> KubernetesRuntime:
        async with self._context.database.transaction() as session:
            cluster = await clusters.get(session, cluster_id)
        if cluster is None or cluster.sealed is None:
            raise Problem("cluster_not_ready", "The cluster is not registered any more.")
        kubeconfig = self._context.keyring.open(cluster.sealed, onboarding.key_context(cluster_id))
        addresses = onboarding.policy_of(self._context.settings, insecure=True).addresses
        return KubernetesRuntime(self._clients.client(cluster_id, kubeconfig, addresses), str(cluster_id))


def _text(line: LogLine) -> str:
    return f"{line.worker} {line.text}"


def _problem(fault: StepError) -> Problem:
    return Problem(fault.code if fault.code in CODES else "unavailable", fault.message)

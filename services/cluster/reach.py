"""What requests ask of clusters themselves: the logs of workers, wherever they are, what is left on a cluster, and what a
deployment would be there.
"""

from collections.abc import AsyncIterator
from uuid import UUID

from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.base import LogLine, UnknownEndpoint
from services.cluster.sites import preview as previews
from services.cluster.sites.base import Site
from services.cluster.sites.kubernetes import KubernetesSite
from shared.contracts.clusters import Orphan
from shared.contracts.deployments import DeploySpec
from shared.contracts.previews import DeployPreview
from shared.contracts.reach import ClusterAccess
from shared.jobs.outcomes import Permanent, StepError


class Reach:
    """Implements `ReachPort`."""

    def __init__(self, tools: ClusterTools) -> None:
        self._tools = tools

    async def lines(
        self, access: ClusterAccess, endpoint_id: UUID, ordinal: int | None, tail: int, follow: bool
    ) -> AsyncIterator[str]:
        """A fault ends a followed log with a last line that tells of it: the answer has begun by then."""
        try:
            runtime = self._site(access).runtime
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
                raise
            yield f"The log ends here: {fault.message}"

    async def leftovers(self, access: ClusterAccess) -> list[Orphan]:
        return await self._kubernetes(access).runtime.orphans(known=())

    async def preview(self, access: ClusterAccess, spec: DeploySpec, parameters: list[str]) -> DeployPreview:
        if access.kind == "local" and not self._tools.is_local(access.id):
            raise Permanent("cluster_not_ready", "This cluster is another machine; ask the Stepway that runs there.")
        return await previews.preview(self._site(access), spec, parameters)

    def _site(self, access: ClusterAccess) -> Site:
        if access.kind == "local":  # of another machine nothing can be read here
            if self._tools.local is None:
                raise Permanent(
                    "cluster_not_ready", "This cluster is another machine; ask the Stepway that runs there."
                )
            return self._tools.local
        return self._kubernetes(access)

    def _kubernetes(self, access: ClusterAccess) -> KubernetesSite:
        if access.kubeconfig is None:
            raise Permanent("cluster_not_ready", "The cluster is not registered any more.")
        return self._tools.kubernetes(access.id, access.kubeconfig, access.ingress_url)


def _text(line: LogLine) -> str:
    return f"{line.worker} {line.text}"

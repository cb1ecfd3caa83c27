"""What requests ask of clusters themselves: the logs of workers, wherever they are, what is left on a cluster, and what a
deployment would be there.
"""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import structlog

from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.base import LogLine, UnknownEndpoint
from services.cluster.runtimes.kubernetes import inspect
from services.cluster.runtimes.kubernetes.client import KubernetesClient, Limits
from services.cluster.sites import preview as previews
from services.cluster.sites.base import Site
from services.cluster.sites.kubernetes import KubernetesSite
from shared.contracts.clusters import Orphan
from shared.contracts.deployments import DeploySpec
from shared.contracts.previews import DeployPreview
from shared.contracts.reach import ClusterAccess
from shared.errors import Problem
from shared.jobs.outcomes import Permanent, StepError
from shared.security.kubeconfig import Kubeconfig, KubeconfigPolicy, parse

IDENTITY_SECONDS = 3.0  # in which a cluster may tell who it is, the wait for a place included
IDENTITIES = 4  # clusters that are asked at a time

log = structlog.get_logger(__name__)


class Reach:
    """Implements `ReachPort`."""

    def __init__(self, tools: ClusterTools) -> None:
        self._tools = tools
        self._asking = asyncio.Semaphore(IDENTITIES)

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

    async def identity(self, kubeconfig: bytes) -> str | None:
        """As the job of its registration would ask, with the same rules for addresses, and no second try."""
        try:
            # That its server need not prove itself was the user's word when the file was taken.
            parsed = parse(kubeconfig, KubeconfigPolicy(allow_insecure=True, addresses=self._tools.addresses))
            async with asyncio.timeout(IDENTITY_SECONDS), self._asking, self._stranger(parsed) as client:
                return await inspect.uid(client)
        except (Problem, StepError, TimeoutError):
            return None
        except Exception as error:  # a stranger answers: the job asks again, and is the one to fail of it
            log.warning("identity_unreadable", error=type(error).__name__)
            return None

    async def preview(self, access: ClusterAccess, spec: DeploySpec, parameters: list[str]) -> DeployPreview:
        if access.kind == "local" and not self._tools.is_local(access.id):
            raise Permanent("cluster_not_ready", "This cluster is another machine; ask the Stepway that runs there.")
        return await previews.preview(self._site(access), spec, parameters)

    def _stranger(self, kubeconfig: Kubeconfig) -> KubernetesClient:
        """A connection of its own, for one question."""
        limits = Limits(total=IDENTITY_SECONDS, max_answer=1 << 20, connections=1)
        return KubernetesClient(kubeconfig, addresses=self._tools.addresses, limits=limits)

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

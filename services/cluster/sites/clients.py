"""One connection to each cluster for everything in this process that speaks to it: jobs, the observer, the gateway."""

import asyncio
import hashlib
from dataclasses import dataclass
from uuid import UUID

import structlog

from services.cluster.runtimes.kubernetes.client import KubernetesClient, Limits
from shared.errors import Problem
from shared.jobs.outcomes import Permanent
from shared.security.kubeconfig import KubeconfigPolicy, parse
from shared.security.kubeconfig_server import ServerPolicy

LIMITS = Limits(connections=256)
IDLE = 60.0  # seconds without a request after which a connection that was replaced is closed
_LOOK = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    fingerprint: bytes
    client: KubernetesClient


class Clients:
    """Belongs to one event loop. Whoever asks for a client asks anew each time, and closes none."""

    def __init__(self, limits: Limits = LIMITS, idle: float = IDLE) -> None:
        self._limits = limits
        self._idle = idle
        self._kept: dict[UUID, _Kept] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def client(self, cluster_id: UUID, kubeconfig: bytes, addresses: ServerPolicy) -> KubernetesClient:
        """The cluster's, made when it is first asked for, or when the kubeconfig has changed.

        Whether the server need not prove itself was the user's word when the file was stored. Raises Permanent where
        it cannot be used (any more): credentials that have expired, an address that is not allowed here.
        """
        fingerprint = hashlib.sha256(kubeconfig + repr(addresses).encode()).digest()
        kept = self._kept.get(cluster_id)
        if kept is not None and kept.fingerprint == fingerprint:
            return kept.client
        try:
            parsed = parse(kubeconfig, KubeconfigPolicy(allow_insecure=True, addresses=addresses))
        except Problem as problem:
            raise Permanent(problem.code, problem.detail) from problem
        client = KubernetesClient(parsed, addresses=addresses, limits=self._limits)
        self._kept[cluster_id] = _Kept(fingerprint, client)
        if kept is not None:
            self._retire(kept.client)
        return client

    def forget(self, cluster_id: UUID) -> None:
        """The cluster is not registered any more."""
        kept = self._kept.pop(cluster_id, None)
        if kept is not None:
            self._retire(kept.client)

    async def aclose(self) -> None:
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        kept, self._kept = list(self._kept.values()), {}
        for one in kept:
            await one.client.close()

    def _retire(self, client: KubernetesClient) -> None:
        task = asyncio.create_task(self._close_once_idle(client), name="close-cluster-client")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _close_once_idle(self, client: KubernetesClient) -> None:
        """Steps, watches and answers that stream go on over the connection that they began with."""
        clock = asyncio.get_running_loop().time
        idle_since = clock()
        try:
            while clock() - idle_since < self._idle:
                await asyncio.sleep(min(_LOOK, self._idle))
                if client.busy:
                    idle_since = clock()
        finally:
            await client.close()
            log.info("cluster_connection_closed", server=client.server)

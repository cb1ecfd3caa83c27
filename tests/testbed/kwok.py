"""A real control plane with fake nodes, for scale and scheduling: `with KwokCluster(nodes=1000)`, or the fixture `kwok`.

Nodes and their pods are played by KWOK: a pod that the scheduler puts on one is Running and ready at once, and nothing
runs. GPU nodes carry the labels and the resources that NVIDIA's GPU feature discovery and device plugin give them.
Needs no root; everything is on 127.0.0.1.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import pytest

from tests.testbed.build import program
from tests.testbed.kube import ApiServer, ControlPlane
from tests.testbed.machine import need
from tests.testbed.processes import Folder, Processes, free_ports
from tests.testbed.session import for_session

START_SECONDS = 300.0  # on a machine that is busy with much else; alone it is a few
SESSION_NODES = 12  # of the fixture: three of each kind
_AT_ONCE = 16  # requests
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_CONDITIONS = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
_FLAGS = (
    "--max-requests-inflight=2000",
    "--max-mutating-requests-inflight=1000",
    "--disable-admission-plugins=TaintNodesByCondition",  # would have every node tainted and untainted once
)
_LEASE_SECONDS = 240  # renewed four times in it; thousands of nodes would else keep a small machine busy


@dataclass(frozen=True, slots=True)
class NodeKind:
    """A kind of node. `gpu_memory` is of each GPU, in MiB, as GPU feature discovery labels it."""

    name: str
    cpus: int
    memory_gib: int
    gpus: int = 0
    product: str = ""
    gpu_memory: int = 0
    family: str = ""
    compute: tuple[int, int] = (0, 0)

    def labels(self) -> dict[str, str]:
        if not self.gpus:
            return {}
        return {
            "nvidia.com/gpu.present": "true",
            "nvidia.com/gpu.count": str(self.gpus),
            "nvidia.com/gpu.product": self.product,
            "nvidia.com/gpu.memory": str(self.gpu_memory),
            "nvidia.com/gpu.family": self.family,
            "nvidia.com/gpu.compute.major": str(self.compute[0]),
            "nvidia.com/gpu.compute.minor": str(self.compute[1]),
            "nvidia.com/gpu.replicas": "1",
            "nvidia.com/gpu.sharing-strategy": "none",
            "nvidia.com/mig.capable": str(self.family in ("ampere", "hopper") and self.product != "NVIDIA-A10").lower(),
            "nvidia.com/mig.strategy": "single",
            "nvidia.com/cuda.driver-version.full": "570.124.06",
            "nvidia.com/cuda.runtime-version.full": "12.8",
        }

    def node(self, name: str) -> dict[str, Any]:
        """The Node, ready; KWOK keeps it so."""
        found = {"cpu": str(self.cpus), "memory": f"{self.memory_gib}Gi", "ephemeral-storage": "200Gi", "pods": "110"}
        taints = []
        if self.gpus:
            found["nvidia.com/gpu"] = str(self.gpus)
            taints.append({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"})
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "node.kubernetes.io/instance-type": self.name,
            "topology.kubernetes.io/region": "region-1",
            "topology.kubernetes.io/zone": "zone-1",
            "type": "kwok",
        }
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "labels": labels | self.labels(),
                "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
            },
            "spec": {"taints": taints},
            "status": {
                "capacity": found,
                "allocatable": found,
                "addresses": [{"type": "Hostname", "address": name}],
                "conditions": [_condition(kind, kind == "Ready") for kind in _CONDITIONS],
                "nodeInfo": {"kubeletVersion": "v1.34.4"},
            },
        }


KINDS = (
    NodeKind("cpu", 16, 64),
    NodeKind("t4", 16, 64, 1, "Tesla-T4", 15360, "turing", (7, 5)),
    NodeKind("a100", 96, 1024, 8, "NVIDIA-A100-SXM4-80GB", 81920, "ampere", (8, 0)),
    NodeKind("h100", 192, 2048, 8, "NVIDIA-H100-80GB-HBM3", 81559, "hopper", (9, 0)),
)


@pytest.fixture(scope="session")
def kwok(pytestconfig: pytest.Config) -> "KwokCluster":
    """One small cluster for the session, three nodes of each of KINDS, with the access of deploy/cluster-access.yaml."""
    need("kube", "kwok")
    return for_session(pytestconfig, _with_access)


@contextlib.contextmanager
def _with_access() -> "Iterator[KwokCluster]":
    with KwokCluster(SESSION_NODES) as cluster:
        cluster.api.apply_access()
        yield cluster


class KwokCluster:
    """`nodes` of the given kinds in turn. Started on entry, when all nodes are ready; gone on exit.

    `flags` are more for the API server.
    """

    def __init__(self, nodes: int, kinds: Sequence[NodeKind] = KINDS, flags: Sequence[str] = ()) -> None:
        self._nodes = [kind.node(f"{kind.name}-{n}") for n, kind in zip(range(nodes), itertools.cycle(kinds))]
        self._folder = Folder("kwok")
        self.processes = Processes(self._folder.path)
        self.plane = ControlPlane(self.processes, flags=(*_FLAGS, *flags), node_grace=2 * _LEASE_SECONDS)

    @property
    def api(self) -> ApiServer:
        return self.plane.api

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self.plane.stop()
        self._folder.close()

    def ready_nodes(self) -> int:
        items = self.api.get("/api/v1/nodes", resourceVersion="0")["items"]
        return sum(_is_ready(item) for item in items)

    def _start(self) -> None:
        self.plane.start()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._add, self._nodes))
        self.plane.start_controllers()
        port = free_ports(1)[0]
        flags = (
            f"--kubeconfig={self.plane.admin_kubeconfig}",
            f"--server-address=127.0.0.1:{port}",
            f"--node-lease-duration-seconds={_LEASE_SECONDS}",
            "--manage-all-nodes=true",
            "--v=WARN",
        )
        self.processes.start("kwok", [program("kwok").path, *flags])
        self.processes.wait("KWOK held every node's lease", self._all_held, seconds=START_SECONDS)

    def _add(self, node: dict[str, Any]) -> None:
        self.api.admin.post("/api/v1/nodes", json=node).raise_for_status()

    def _all_held(self) -> bool:
        """Whether KWOK has taken all nodes on: it renews a lease for each."""
        found = self.api.get(_LEASES, limit="1")
        count = len(found["items"]) + int(found["metadata"].get("remainingItemCount", 0))
        return count >= len(self._nodes)


def _condition(kind: str, holds: bool) -> dict[str, str]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
    return {"type": kind, "status": str(holds), "reason": "Testbed", "message": "", **times}


def _is_ready(node: dict[str, Any]) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", []))

"""Registering a cluster of many nodes, GPU nodes of several kinds among them, against reading the same by plain HTTP.

Stepway: from the form's last field until the job has succeeded: it has connected, asked for each permission that it
needs, and read nodes and classes. The floor: version, identity, all nodes in pages of the same size and all classes,
parsed, over one connection. The two take turns.
"""

import json
import time

from services.cluster.runtimes.kubernetes.client import Limits
from tests.bench.clusters import need, register
from tests.bench.figures import Figure
from tests.bench.server import Stepway
from tests.testbed.kube import ApiServer
from tests.testbed.kwok import KwokCluster

CLASSES = (
    "/apis/storage.k8s.io/v1/storageclasses", "/apis/networking.k8s.io/v1/ingressclasses",
    "/apis/node.k8s.io/v1/runtimeclasses",
)  # fmt: skip


def run(quick: bool) -> list[Figure]:
    need("kube", "kwok")
    nodes = 200 if quick else 1000
    with KwokCluster(nodes) as cluster, Stepway(STEPWAY_ALLOW_LOOPBACK_CLUSTERS="true") as stepway:
        cluster.api.apply_access()
        return measure(stepway, cluster.api, nodes, 1 if quick else 5)


def measure(stepway: Stepway, api: ApiServer, nodes: int, rounds: int) -> list[Figure]:
    kubeconfig = api.access_kubeconfig()
    read(api, nodes)  # warms up
    ours: list[float] = []
    floor: list[float] = []
    for number in range(rounds):
        floor.append(read(api, nodes))
        began = time.perf_counter()
        cluster_id = register(stepway, kubeconfig, f"cluster {number}")
        ours.append(time.perf_counter() - began)
        shown = stepway.get(f"/clusters/{cluster_id}")
        if shown["facts"]["node_count"] != nodes:
            raise RuntimeError(f"{shown['facts']['node_count']} of {nodes} nodes were found")
        stepway.client.delete(f"/clusters/{cluster_id}", params={"force": "true"}).raise_for_status()
    middle = rounds // 2
    return [
        Figure(
            f"registering a cluster of {nodes:,} nodes", sorted(ours)[middle], "s", sorted(floor)[middle],
            "s reading it by HTTP", note=f"of {rounds}: {min(ours):.2f} to {max(ours):.2f} s",
        )
    ]  # fmt: skip


def read(api: ApiServer, nodes: int) -> float:
    """Seconds."""
    began = time.perf_counter()
    api.get("/version")
    api.get("/api/v1/namespaces/kube-system")
    found, token = 0, ""
    while True:
        query = {"limit": str(Limits().page), **({"continue": token} if token else {})}
        answer = json.loads(api.admin.get("/api/v1/nodes", params=query).raise_for_status().content)
        found += len(answer["items"])
        token = answer["metadata"].get("continue", "")
        if not token:
            break
    for path in CLASSES:
        api.get(path)
    if found != nodes:
        raise RuntimeError(f"the cluster lists {found} of {nodes} nodes")
    return time.perf_counter() - began

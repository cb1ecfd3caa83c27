"""Fake nodes under a real control plane: quick in numbers, and scheduled on like real ones."""

import time
from typing import Any

import pytest

from tests.testbed.kwok import KINDS, SESSION_NODES, KwokCluster
from tests.testbed.machine import need

PODS = "/api/v1/namespaces/stepway/pods"


def pod(name: str, gpus: int, **spec: Any) -> dict[str, Any]:
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "stepway"},
        "spec": {
            "containers": [{"name": "main", "image": "none", "resources": resources}],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "automountServiceAccountToken": False,
            **spec,
        },
    }


def conditions(found: dict[str, Any]) -> dict[str, str]:
    return {one["type"]: one["status"] for one in found["status"].get("conditions", [])}


@pytest.fixture
def applied(kwok: KwokCluster) -> Any:
    made: list[str] = []

    def apply(document: dict[str, Any], *, seconds: float = 20.0) -> dict[str, Any]:
        """The pod once the scheduler has decided on it and, if it found a node, KWOK has it ready."""
        made.append(document["metadata"]["name"])
        kwok.api.apply(PODS, document)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = kwok.api.get(f"{PODS}/{made[-1]}")
            if "True" in conditions(found).get("Ready", "") or conditions(found).get("PodScheduled") == "False":
                return found
            time.sleep(0.05)
        raise TimeoutError(str(found["status"]))

    yield apply
    for name in made:
        kwok.api.admin.delete(f"{PODS}/{name}", params={"gracePeriodSeconds": "0"})


def test_nodes_are_ready_and_tell_their_gpus_as_the_device_plugin_does(kwok: KwokCluster) -> None:
    assert kwok.ready_nodes() == SESSION_NODES
    nodes = kwok.api.get("/api/v1/nodes")["items"]
    kinds = {node["metadata"]["labels"]["node.kubernetes.io/instance-type"] for node in nodes}
    assert kinds == {kind.name for kind in KINDS}
    big = next(node for node in nodes if node["metadata"]["name"].startswith("a100-"))
    assert big["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert big["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-A100-SXM4-80GB"
    assert big["metadata"]["labels"]["nvidia.com/gpu.memory"] == "81920"


def test_a_pod_with_gpus_is_ready_on_a_node_that_has_them(kwok: KwokCluster, applied: Any) -> None:
    product = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    found = applied(pod("wants-h100", 8, nodeSelector=product))
    assert found["spec"]["nodeName"].startswith("h100-")
    assert found["status"]["phase"] == "Running"


def test_a_pod_that_fits_nowhere_says_which_resource_lacks(kwok: KwokCluster, applied: Any) -> None:
    found = applied(pod("wants-sixteen", 16))
    message = next(one["message"] for one in found["status"]["conditions"] if one["type"] == "PodScheduled")
    assert f"0/{SESSION_NODES} nodes are available" in message
    assert "Insufficient nvidia.com/gpu" in message


def test_a_thousand_nodes_are_ready_within_the_time_that_tests_have() -> None:
    need("kube", "kwok")
    begun = time.monotonic()
    with KwokCluster(1000) as cluster:
        took = time.monotonic() - begun
        assert cluster.ready_nodes() == 1000
        processes = [cluster.processes.pid(name) for name in ("etcd", "kube-apiserver", "kwok")]
    assert took < 60  # seconds; 12 on two idle cores
    assert not cluster.processes.folder.exists()
    assert cluster.processes.ended() == ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"]
    assert len(set(processes)) == 3

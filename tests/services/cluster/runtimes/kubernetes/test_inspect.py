from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cluster.runtimes.kubernetes.gpus import gpus_of
from services.cluster.runtimes.kubernetes.inspect import node
from shared.clock import now
from shared.contracts.clusters import ClusterInspection, NodeFacts, NodeGpu, ServerVersion


@pytest.mark.parametrize(
    ("allocatable", "labels", "expected"),
    [
        (
            {"nvidia.com/gpu": "8", "cpu": "64"},
            {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB", "nvidia.com/gpu.memory": "81920"},
            [NodeGpu(resource="nvidia.com/gpu", count=8, product="NVIDIA-A100-SXM4-80GB", memory=80 << 30)],
        ),
        (
            {"nvidia.com/gpu": "1"},
            {"cloud.google.com/gke-accelerator": "nvidia-l4"},
            [NodeGpu(resource="nvidia.com/gpu", count=1, product="nvidia-l4")],
        ),
        (
            {"nvidia.com/mig-1g.10gb": "7", "nvidia.com/gpu": "0"},
            {"nvidia.com/gpu.memory": "81920"},
            [NodeGpu(resource="nvidia.com/mig-1g.10gb", count=7, memory=10 << 30)],
        ),
        (
            {"amd.com/gpu": "4"},
            {"amd.com/gpu.product-name": "AMD_Instinct_MI300X", "amd.com/gpu.vram": "192G"},
            [NodeGpu(resource="amd.com/gpu", count=4, product="AMD_Instinct_MI300X", memory=192 << 30)],
        ),
        ({"example.com/gpu": "4", "nvidia.com/gpu": "many"}, {}, []),
        ({"nvidia.com/gpu": "1"}, {"nvidia.com/gpu.memory": "a lot"}, [NodeGpu(resource="nvidia.com/gpu", count=1)]),
    ],
)
def test_gpus(allocatable: dict[str, object], labels: dict[str, str], expected: list[NodeGpu]) -> None:
    assert gpus_of(allocatable, labels) == expected


def test_a_node() -> None:
    found = node(
        {
            "metadata": {
                "name": "n1",
                "labels": {"node-role.kubernetes.io/control-plane": "", "topology.kubernetes.io/zone": "z"},
            },
            "spec": {"unschedulable": True, "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {
                "capacity": {"cpu": "4", "memory": "16Gi"},
                "allocatable": {"cpu": "3800m", "memory": "15Gi", "pods": "110", "ephemeral-storage": "100G"},
                "conditions": [{"type": "Ready", "status": "False", "reason": "Why", "message": "a\nb" + "c" * 999}],
                "nodeInfo": {"kubeletVersion": "v1.30.1", "operatingSystem": "linux", "architecture": "arm64"},
            },
        }
    )
    assert (found.name, found.ready, found.schedulable, found.roles, found.zone) == (
        "n1",
        False,
        False,
        ["control-plane"],
        "z",
    )
    assert (found.cpu_millis, found.cpu_millis_allocatable, found.memory) == (4000, 3800, 16 << 30)
    assert (found.pods_allocatable, found.storage_allocatable) == (110, 100 * 10**9)
    message = found.conditions[0].message
    assert message is not None
    assert message.startswith("a bc")
    assert len(message) == 300


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["metadata", "spec", "status", "labels", "name", "capacity", "allocatable", "conditions", "taints", "nodeInfo"]
)
NESTED = st.dictionaries(FIELDS, ANY | st.dictionaries(FIELDS, ANY, max_size=4), max_size=4)


@given(NESTED)
@settings(max_examples=300, deadline=None)
def test_any_object_is_some_node(item: dict[str, Any]) -> None:
    assert len(node(item).model_dump_json()) < 20_000


def test_totals_count_what_can_be_used() -> None:
    gpu = NodeGpu(resource="nvidia.com/gpu", count=8, product="H100", memory=80 << 30)
    facts: dict[str, Any] = {"cpu_millis_allocatable": 1000, "memory_allocatable": 5, "gpus": [gpu]}
    nodes = [
        NodeFacts(name="a", ready=True, schedulable=True, **facts),
        NodeFacts(name="b", ready=True, schedulable=True, **facts),
        NodeFacts(name="cordoned", ready=True, schedulable=False, **facts),
        NodeFacts(name="dead", ready=False, schedulable=True, **facts),
    ]
    version = ServerVersion(version="v1.30.0", major=1, minor=30)
    totals = ClusterInspection(version=version, uid="u", nodes=nodes, inspected_at=now()).totals()
    assert (totals.nodes, totals.nodes_usable, totals.cpu_millis, totals.memory) == (4, 2, 2000, 10)
    assert [(one.product, one.count, one.nodes) for one in totals.gpus] == [("H100", 16, 2)]

"""Workers that span nodes: planned for, scheduled, scaled, changed and removed on a cluster of four fake GPU nodes.

The control plane and its scheduler are real; nothing runs on the nodes (KWOK), so what is in the pods is tested elsewhere:
the program that forms a group in tests/services/cluster/engines, real pods with it in test_group_pods.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.cluster.engines.base import Unsupported
from services.cluster.runtimes.base import Observation, Workload
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from services.cluster.sites.base import PodPlan
from services.cluster.sites.kubernetes import KubernetesSite
from shared.contracts.clusters import ClusterInspection
from shared.contracts.deployments import Autoscale, DeploySpec, ServedConfig
from shared.contracts.models import Manifest, ModelFile, ModelMetadata
from shared.jobs.outcomes import Permanent
from shared.objects import DirectoryStore
from shared.objects.store import manifest_key
from shared.settings import Settings
from tests.services.cluster.runtimes.kubernetes.support import connected, digest_of
from tests.testbed.kube import ApiServer
from tests.testbed.kwok import KwokCluster, NodeKind
from tests.testbed.machine import need

GIB = 1024**3
KIND = NodeKind("l4x8", 96, 512, 8, "NVIDIA-L4", 24 * 1024, "ada", (8, 9))
APPS = "/apis/apps/v1/namespaces/stepway"
MERGE = {"Content-Type": "application/merge-patch+json"}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    need("kube", "kwok")
    with KwokCluster(4, [KIND]) as cluster:
        cluster.api.apply_access()
        yield cluster.api


@pytest.fixture
async def runtime(server: ApiServer) -> AsyncIterator[KubernetesRuntime]:
    async with connected(server) as runtime:
        yield runtime
        await runtime.remove_all()
        assert await runtime.orphans(known=()) == []


@pytest.fixture
async def site(runtime: KubernetesRuntime, tmp_path: Path) -> KubernetesSite:
    objects = DirectoryStore(tmp_path / "objects")
    await objects.put(manifest_key(MANIFEST.digest), MANIFEST.model_dump_json().encode())
    return KubernetesSite(runtime, Settings(advertised_url="https://stepway.example:8400"), objects)


FILES = [
    ModelFile(path="config.json", size=700, sha256="1" * 64),
    ModelFile(path="model.safetensors", size=170 * GIB, sha256="2" * 64),
]
MANIFEST = Manifest(digest=digest_of(FILES), files=FILES)
SHAPE = ModelMetadata(attention_heads=128, layers=96, kv_bytes_per_token=400_000, context_length=8192, modality=["llm"])


def spec_of(**changes: Any) -> DeploySpec:
    config = ServedConfig(concurrent_requests=4, avg_sequence_length=512, avg_context_length=512)
    values: dict[str, Any] = {
        "endpoint_id": uuid4(), "project_id": uuid4(), "name": "large", "model_id": uuid4(), "digest": MANIFEST.digest,
        "metadata": SHAPE, "cluster_id": uuid4(), "config": config, "generation": 1,
    }  # fmt: skip
    return DeploySpec(**{**values, **changes})


async def made(site: KubernetesSite, replicas: int = 1) -> tuple[PodPlan, Workload]:
    spec = spec_of()
    plan = await site.plan(spec, dry=True)  # no pod here reaches anything
    return plan, await site.workload(spec, plan, key="sk-worker", replicas=replicas)


def again(asked: Workload, generation: int, **environment: str) -> Workload:
    """The same, with other variables in its pods."""
    assert asked.container is not None
    container = asked.container.model_copy(update={"environment": asked.container.environment | environment})
    return asked.model_copy(update={"container": container, "generation": generation})


def pods_of(server: ApiServer, endpoint_id: str) -> dict[str, str]:
    """Names of its pods that are to stay, with their nodes."""
    found = server.get("/api/v1/namespaces/stepway/pods", labelSelector=f"stepway/endpoint={endpoint_id}")["items"]
    return {
        one["metadata"]["name"]: one["spec"].get("nodeName", "")
        for one in found
        if not one["metadata"].get("deletionTimestamp")
    }


async def test_a_model_that_no_node_holds_is_planned_for_several(site: KubernetesSite) -> None:
    said: list[str] = []
    await site.plan(spec_of(), dry=True, on_progress=lambda _, message: said.append(message))
    assert said[0] == "No node has the GPUs of a worker: each is 2 pods on as many nodes."
    plan, asked = await made(site, 2)
    assert plan.container.pods == 2
    assert (plan.replicas, plan.memory_bytes) == (1, 2 * plan.container.resources.memory_bytes)
    assert plan.delivery is not None
    assert (plan.delivery.mode, plan.delivery.size_bytes) == ("fetch", MANIFEST.size)
    shown = await site.preview(asked)
    assert shown.problems == []
    assert shown.needs is not None
    assert (shown.needs.workers, shown.needs.gpus, shown.places) == (2, 32, 2)
    assert shown.needs.node_disk_bytes == 4 * MANIFEST.size
    kinds = [one["kind"] for one in shown.manifests]
    assert (kinds.count("StatefulSet"), kinds.count("Service"), kinds.count("Deployment")) == (2, 2, 0)
    with pytest.raises(Permanent, match="have room for 2 of 3 workers, each with 2 pods, each of them with 16 CPUs"):
        await site.check(asked.model_copy(update={"replicas": 3}))
    with pytest.raises(Unsupported, match="does not scale such workers by itself"):
        await site.plan(spec_of(autoscale=Autoscale(minimum=1, maximum=2)), dry=True)


async def test_a_cluster_whose_pods_do_not_know_their_numbers_is_too_old(
    site: KubernetesSite, runtime: KubernetesRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await runtime.inspection()
    old = found.version.model_copy(update={"version": "v1.27.3", "major": 1, "minor": 27})

    async def inspection() -> ClusterInspection:
        return found.model_copy(update={"version": old})

    monkeypatch.setattr(runtime, "inspection", inspection)
    with pytest.raises(Unsupported, match=r"takes Kubernetes 1\.28; this is v1\.27\.3"):
        await site.plan(spec_of(), dry=True)


async def test_groups_come_and_go_as_wholes_each_pod_on_a_node_of_its_own(
    site: KubernetesSite, runtime: KubernetesRuntime, server: ApiServer
) -> None:
    _, asked = await made(site)
    name, base = asked.endpoint_id, f"ep-{asked.endpoint_id}"
    await runtime.apply(asked)
    seen = await runtime.wait_ready(name, 1, 120)
    (worker,) = seen.workers
    assert (worker.id, worker.ordinal, worker.state, worker.gpus) == (f"{base}-0", 0, "ready", 16)
    assert worker.memory_bytes == asked.memory_bytes
    assert worker.url is not None
    assert worker.url.endswith(f"/pods/{base}-0:8000/proxy")
    pods = pods_of(server, name)
    assert set(pods) == {f"{base}-0", f"{base}-r1-0"}
    assert worker.node == f"{pods[f'{base}-0']}, {pods[f'{base}-r1-0']}"

    await runtime.check_more(name, 2)
    await runtime.scale(name, 2, 2)
    seen = await runtime.wait_ready(name, 2, 120)
    assert [one.id for one in seen.workers] == [f"{base}-0", f"{base}-1"]
    pods = pods_of(server, name)
    assert len(pods) == len(set(pods.values())) == 4
    with pytest.raises(Permanent, match="have room for 0 of 1 workers"):
        await runtime.check_more(name, 3)

    await runtime.scale(name, 1, 3)
    await until(runtime, name, lambda one: [worker.id for worker in one.workers] == [f"{base}-0"])
    assert set(pods_of(server, name)) == {f"{base}-0", f"{base}-r1-0"}
    found = (await runtime.orphans(known=()))[0].objects
    assert [one for one in found if "StatefulSet" in one] == [f"StatefulSet/{base}", f"StatefulSet/{base}-r1"]
    await runtime.remove(name)
    assert pods_of(server, name) == {}
    assert server.get(f"{APPS}/statefulsets")["items"] == []


async def test_a_group_is_ready_when_all_its_pods_are(
    site: KubernetesSite, runtime: KubernetesRuntime, server: ApiServer
) -> None:
    _, asked = await made(site)
    name, base = asked.endpoint_id, f"ep-{asked.endpoint_id}"
    await runtime.apply(asked)
    await runtime.wait_ready(name, 1, 120)
    follower = f"/api/v1/namespaces/stepway/pods/{base}-r1-0"
    ill = {"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]}}
    headers = {"Content-Type": "application/strategic-merge-patch+json"}
    server.admin.patch(f"{follower}/status", headers=headers, json=ill).raise_for_status()
    one = await until(runtime, name, lambda one: not one.ready)
    assert [worker.id for worker in one.workers] == [f"{base}-0"]
    server.admin.delete(follower, params={"gracePeriodSeconds": "0"}).raise_for_status()
    await runtime.wait_ready(name, 1, 120)
    for other in server.get("/api/v1/nodes")["items"]:  # now no node takes it
        patch = {"spec": {"unschedulable": True}}
        server.admin.patch(f"/api/v1/nodes/{other['metadata']['name']}", headers=MERGE, json=patch).raise_for_status()
    try:
        server.admin.delete(follower, params={"gracePeriodSeconds": "0"}).raise_for_status()
        seen = await until(runtime, name, lambda one: any(worker.reason for worker in one.workers))
    finally:
        for other in server.get("/api/v1/nodes")["items"]:
            path = f"/api/v1/nodes/{other['metadata']['name']}"
            server.admin.patch(path, headers=MERGE, json={"spec": {"unschedulable": None}}).raise_for_status()
    (worker,) = seen.workers
    assert (worker.state, worker.reason) == ("starting", "unschedulable")
    assert worker.message == f"{base}-r1-0: None of the 4 nodes can take the pod: 4 nodes are cordoned."
    await runtime.wait_ready(name, 1, 120)


async def test_what_others_do_to_a_set_is_seen_and_healed(
    site: KubernetesSite, runtime: KubernetesRuntime, server: ApiServer
) -> None:
    _, asked = await made(site)
    name, path = asked.endpoint_id, f"{APPS}/statefulsets/ep-{asked.endpoint_id}-r1"
    await runtime.apply(asked)
    assert (await runtime.wait_ready(name, 1, 120)).reason is None
    server.admin.patch(path, headers=MERGE, json={"spec": {"replicas": 0}}).raise_for_status()
    seen = (await runtime.observe())[name]
    assert seen.message == f"Somebody changed the StatefulSet ep-{name}-r1: spec.replicas."
    assert (await runtime.heal(name)).reason is None
    server.admin.delete(path, params={"propagationPolicy": "Background"}).raise_for_status()
    assert (await runtime.observe())[name].message == f"Somebody deleted the StatefulSet ep-{name}-r1."
    await runtime.heal(name)
    assert (await runtime.wait_ready(name, 1, 120)).reason is None


async def test_a_change_replaces_every_group_and_one_between_kinds_leaves_nothing_behind(
    site: KubernetesSite, runtime: KubernetesRuntime, server: ApiServer
) -> None:
    _, asked = await made(site, 2)
    name = asked.endpoint_id
    await runtime.apply(asked)
    await runtime.wait_ready(name, 2, 120)
    await runtime.apply(again(asked, 2, VERSION="2"))
    seen = await runtime.wait_ready(name, 2, 240)
    assert [(one.generation, one.state) for one in seen.workers] == [(2, "ready"), (2, "ready")]
    assert asked.container is not None
    alone = {"container": asked.container.model_copy(update={"pods": 1}), "generation": 3}
    await runtime.apply(asked.model_copy(update=alone))
    seen = await runtime.wait_ready(name, 2, 120)
    await until(runtime, name, lambda one: len(one.workers) == len(one.ready) == 2)
    assert {worker.gpus for worker in seen.ready} == {8}
    assert server.get(f"{APPS}/statefulsets")["items"] == []
    services = server.get("/api/v1/namespaces/stepway/services")["items"]
    assert [one["metadata"]["name"] for one in services] == [f"ep-{name}"]
    assert "stepway/rank" not in services[0]["spec"]["selector"]
    await runtime.apply(again(asked, 4, VERSION="3"))
    await runtime.wait_ready(name, 2, 240)
    assert server.get(f"{APPS}/deployments")["items"] == []


async def test_pods_that_the_cluster_refuses_to_make_are_told(
    site: KubernetesSite, runtime: KubernetesRuntime, server: ApiServer
) -> None:
    path = "/api/v1/namespaces/stepway/resourcequotas"
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small", "namespace": "stepway"}}
    server.apply(path, {**quota, "spec": {"hard": {"pods": "1"}}})
    _, asked = await made(site)
    try:
        await runtime.apply(asked)
        with pytest.raises(Permanent, match="The quota small is used up") as refused:
            await runtime.wait_ready(asked.endpoint_id, 1, 120)
    finally:
        server.admin.delete(f"{path}/small").raise_for_status()
    assert refused.value.code == "worker_quota_exceeded"


async def until(runtime: KubernetesRuntime, name: str, holds: Any) -> Observation:
    async with asyncio.timeout(120):
        while (seen := await runtime.observe_one(name)) is None or not holds(seen):
            await asyncio.sleep(0.2)
    return seen

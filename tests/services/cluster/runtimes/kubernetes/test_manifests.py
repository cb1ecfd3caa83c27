"""What is made for each engine, tried by a real API server with the rights of deploy/cluster-access.yaml."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from services.cluster.engines.base import CloudModel, ContainerPlan, DeployConfig, ModelSource
from services.cluster.engines.images import Images
from services.cluster.engines.litellm import LiteLlm
from services.cluster.engines.llama_cpp_container import LlamaCppContainer
from services.cluster.engines.vllm import Vllm
from services.cluster.runtimes.base import Runtime, StaleGeneration, UnknownEndpoint, Workload
from services.cluster.runtimes.containers import Claim, Exposure, Resources
from services.cluster.runtimes.kubernetes import intent
from services.cluster.runtimes.kubernetes.manifests import Builder
from services.cluster.runtimes.kubernetes.objects import Refused
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from shared.contracts.clusters import NodeFacts, NodeGpu
from shared.contracts.deployments import Autoscale, Tuning
from shared.contracts.models import ModelFile, ModelMetadata
from shared.jobs.outcomes import Permanent
from tests.services.cluster.runtimes.kubernetes.support import (
    KEY,
    MIB,
    OWNER,
    connected,
    container,
    delivery,
    workload,
)
from tests.testbed.kube import ApiServer

OTHER_OWNER = "99999999-7f5e-4f0e-9d3c-3a5c6b8f1e21"
SECRET = "sk-live-of-the-provider"
NODES = [
    NodeFacts(
        name="gpu-1", ready=True, schedulable=True, cpu_millis_allocatable=64_000, memory_allocatable=512 << 30,
        pods_allocatable=110, os="linux",
        gpus=[NodeGpu(resource="nvidia.com/gpu", count=4, product="NVIDIA-L4", memory=24 << 30)],
    )
]  # fmt: skip


def hf_model(size: int = 16 << 30) -> ModelSource:
    files = [ModelFile(path="config.json", size=700, sha256="1" * 64)]
    files.append(ModelFile(path="model.safetensors", size=size, sha256="2" * 64))
    metadata = ModelMetadata(attention_heads=32, layers=32, kv_bytes_per_token=131072, context_length=8192)
    return ModelSource(name="llama 8b", directory=Path("/unused"), files=files, metadata=metadata)


def gguf_model() -> ModelSource:
    files = [ModelFile(path="m.gguf", size=100 * MIB, sha256="3" * 64)]
    return ModelSource(name="smol", directory=Path("/unused"), files=files, metadata=ModelMetadata())


def of_plan(endpoint_id: str, made: ContainerPlan, **changes: Any) -> Workload:
    secrets = {name: SecretStr(SECRET) for name in made.secrets}
    values: dict[str, Any] = {"container": made.container, "memory_bytes": made.memory_bytes, "secrets": secrets}
    return workload(endpoint_id, **{**values, **changes})


def vllm() -> Workload:
    made = Vllm(Images()).container_plan(
        hf_model(), DeployConfig(concurrent_requests=16), NODES, Tuning(tool_parser="hermes", quantization="fp8")
    )
    claim = Claim(size_bytes=20 << 30, shared=True)
    brought = delivery({"config.json": b"{}"}, mode="claim", url="https://stepway.example/b", claim=claim)
    return of_plan(
        "vllm",
        made,
        delivery=brought,
        secrets={"loader-token": SecretStr(SECRET)},
        autoscale=Autoscale(minimum=1, maximum=3),
    )


def spanning() -> Workload:
    """A model for three nodes of four GPUs."""
    nodes = [NODES[0].model_copy(update={"name": f"gpu-{number}"}) for number in range(4)]
    made = Vllm(Images()).container_plan(hf_model(180 << 30), DeployConfig(concurrent_requests=4), nodes, Tuning())
    brought = delivery({"config.json": b"{}"}, url="https://stepway.example/b")
    return of_plan("spanning", made, delivery=brought, secrets={"loader-token": SecretStr(SECRET)}, replicas=2)


def llama_cpp() -> Workload:
    made = LlamaCppContainer(Images()).container_plan(gguf_model(), DeployConfig(), NODES, Tuning())
    brought = delivery({"m.gguf": b"x"}, url="https://stepway.example/b", ca_pem="-----BEGIN CERTIFICATE-----")
    way_in = Exposure(url="http://203.0.113.9:10001", host="smol.endpoints.stepway", ingress_class="nginx")
    return of_plan(
        "llama", made, delivery=brought, secrets={"loader-token": SecretStr(SECRET)}, exposure=way_in, replicas=2
    )


def litellm() -> Workload:
    model = CloudModel(name="gpt", uri="openai/gpt-4o", parameters=["api_key", "api_base"])
    return of_plan("cloud", LiteLlm(Images()).container_plan(model, DeployConfig()))


def push() -> Workload:
    claim = Claim(size_bytes=1 << 30)
    brought = delivery({"m.gguf": b"x"}, mode="push", claim=claim)
    return workload("push", delivery=brought, secrets={"loader-token": SecretStr(SECRET)})


ALL = [vllm, spanning, llama_cpp, litellm, push]


@pytest.fixture
async def runtime(api_server: ApiServer) -> AsyncIterator[KubernetesRuntime]:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "stepway"}}
    api_server.apply("/api/v1/namespaces/stepway/serviceaccounts", account)  # there is no controller that makes it
    async with connected(api_server) as runtime:
        yield runtime
        await runtime.remove_all()
        assert await runtime.orphans(known=()) == []


@pytest.mark.parametrize("make", ALL)
async def test_the_cluster_takes_everything_in_a_dry_run(runtime: KubernetesRuntime, make: Any) -> None:
    found = await runtime.preview(make())
    refusals = [problem for problem in found.problems if not problem.startswith("The nodes have room")]
    assert refusals == []
    kinds = {one["kind"] for one in found.manifests}
    assert {"Service", "Secret", "PodDisruptionBudget"} <= kinds
    assert len(kinds & {"Deployment", "StatefulSet"}) == 1
    text = json.dumps(found.manifests)
    assert SECRET not in text
    assert KEY not in text
    assert await runtime.observe() == {}


@pytest.mark.parametrize("make", ALL)
def test_no_pod_runs_as_root_or_with_a_token(make: Any) -> None:
    builder = Builder(make(), OWNER)
    specs = [one["spec"]["template"]["spec"] for one in builder.sets()]
    if builder.workload.delivery is not None and builder.workload.delivery.claim is not None:
        loader = builder.loader()
        specs.append(loader["spec"]["template"]["spec"] if loader["kind"] == "Job" else loader["spec"])
    for spec in specs:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in [*spec["containers"], *spec.get("initContainers", [])]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert "memory" in one["resources"]["limits"]
        assert not any("hostPath" in volume for volume in spec["volumes"])


@pytest.mark.parametrize("make", ALL)
def test_the_same_workload_gives_the_same_objects_and_a_new_key_new_pods(make: Any) -> None:
    one, other = (Builder(make(), OWNER) for _ in range(2))
    assert one.all() == other.all()
    (template,) = templates(one)
    assert {template} == templates(Builder(make().model_copy(update={"generation": 9, "replicas": 5}), OWNER))
    changed = Builder(make().model_copy(update={"api_key": SecretStr("sk-another")}), OWNER)
    assert {template} != templates(changed)


def templates(builder: Builder) -> set[str | None]:
    return {intent.template_of(one) for one in builder.sets()}


def test_vllm_is_placed_on_the_gpus_that_it_was_planned_for() -> None:
    spec = Builder(vllm(), OWNER).sets()[0]["spec"]["template"]["spec"]
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]} in terms[0]["matchExpressions"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    assert not Builder(llama_cpp(), OWNER).sets()[0]["spec"]["template"]["spec"].get("tolerations")


def test_a_worker_that_spans_nodes_is_a_set_for_each_of_its_pods() -> None:
    builder = Builder(spanning(), OWNER)
    made = builder.sets()
    assert [(one["kind"], one["metadata"]["name"]) for one in made] == [
        ("StatefulSet", "ep-spanning"), ("StatefulSet", "ep-spanning-r1"), ("StatefulSet", "ep-spanning-r2"),
    ]  # fmt: skip
    assert {one["spec"]["replicas"] for one in made} == {2}
    for rank, one in enumerate(made):
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert one["spec"]["selector"]["matchLabels"]["stepway/rank"] == labels["stepway/rank"] == str(rank)
        (server,) = one["spec"]["template"]["spec"]["containers"]
        assert server["resources"]["limits"]["nvidia.com/gpu"] == "4"
        values = {each["name"]: each.get("value") for each in server["env"]}
        assert (values["STEPWAY_RANK"], values["STEPWAY_PODS"]) == (str(rank), "3")
        assert values["STEPWAY_LEADER"] == "ep-spanning-$(STEPWAY_GROUP).ep-spanning-pods"
    way_in, hosts = [one["spec"] for one in builder.all() if one["kind"] == "Service"]
    assert way_in["selector"]["stepway/rank"] == "0"
    assert (hosts["clusterIP"], hosts["publishNotReadyAddresses"]) == ("None", True)
    with pytest.raises(Permanent, match="cannot be scaled by the cluster itself"):
        Builder(spanning().model_copy(update={"autoscale": Autoscale(minimum=1, maximum=3)}), OWNER).sets()


def test_a_secret_that_is_not_there_is_told_before_anything_is_made() -> None:
    with pytest.raises(Permanent, match="loader-token"):
        Builder(llama_cpp().model_copy(update={"secrets": {}}), OWNER)


# --- intent, fence, ownership: no pods are needed


async def test_an_older_generation_is_refused_and_the_later_intent_stays(runtime: KubernetesRuntime) -> None:
    await runtime.apply(workload("fence", 5))
    as_protocol: Runtime = runtime
    seen = await as_protocol.scale("fence", 3, 6)
    assert (seen.generation, seen.replicas) == (6, 3)
    with pytest.raises(StaleGeneration):
        await runtime.apply(workload("fence", 5))
    with pytest.raises(StaleGeneration):
        await runtime.scale("fence", 1, 4)
    with pytest.raises(StaleGeneration):
        await runtime.remove("fence", 4)
    assert (await runtime.observe())["fence"].replicas == 3
    with pytest.raises(UnknownEndpoint):
        await runtime.scale("nobody", 1, 1)


async def test_many_at_once_end_with_the_newest(runtime: KubernetesRuntime, api_server: ApiServer) -> None:
    results = await asyncio.gather(
        *(runtime.apply(workload("many", number, number)) for number in range(1, 9)), return_exceptions=True
    )
    assert all(isinstance(one, StaleGeneration) for one in results if isinstance(one, BaseException))
    assert (await runtime.observe())["many"].replicas == 8
    found = api_server.get("/apis/apps/v1/namespaces/stepway/deployments/ep-many")
    assert found["spec"]["replicas"] == 8


async def test_what_is_another_installations_is_left_alone(runtime: KubernetesRuntime, api_server: ApiServer) -> None:
    async with connected(api_server, OTHER_OWNER) as other:
        await other.apply(workload("mine"))
        with pytest.raises(Permanent) as caught:
            await runtime.apply(workload("mine", 7))
        assert caught.value.code == "owned_by_another"
        assert await runtime.observe() == {}
        assert await runtime.orphans(known=()) == []
        with pytest.raises(Permanent):
            await runtime.remove("mine")
        assert (await other.observe())["mine"].generation == 1
        await other.remove_all()


@pytest.fixture
def stranger(api_server: ApiServer) -> Iterator[None]:
    path = "/api/v1/namespaces/stepway/configmaps"
    metadata = {"name": "of-the-operator", "namespace": "stepway"}
    api_server.apply(path, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}})
    yield
    api_server.admin.delete(f"{path}/of-the-operator").raise_for_status()


async def test_what_somebody_has_made_unreadable_is_told_and_can_be_removed(
    runtime: KubernetesRuntime, api_server: ApiServer
) -> None:
    await runtime.apply(llama_cpp())
    path = "/api/v1/namespaces/stepway/configmaps/ep-llama"
    changed = {**api_server.get(path), "data": {"intent": "of somebody else"}}
    api_server.admin.put(path, json=changed).raise_for_status()
    with pytest.raises(Permanent) as caught:
        await runtime.apply(llama_cpp())
    assert caught.value.code == "intent_unreadable"
    assert [one.endpoint_id for one in await runtime.orphans(known=())] == ["llama"]
    await runtime.remove("llama")
    assert await runtime.orphans(known=()) == []


async def test_orphans_are_listed_and_removed_and_nothing_else_is(
    runtime: KubernetesRuntime, api_server: ApiServer, stranger: None
) -> None:
    await runtime.apply(workload("known"))
    await runtime.apply(llama_cpp())
    found = await runtime.orphans(known=["known"])
    assert [one.endpoint_id for one in found] == ["llama"]
    assert found[0].job == "11111111-2222-3333-4444-555555555555"
    kinds = {one.partition("/")[0] for one in found[0].objects}
    assert kinds == {"ConfigMap", "Deployment", "Ingress", "PodDisruptionBudget", "Secret", "Service"}
    await runtime.remove("llama")
    assert await runtime.orphans(known=["known"]) == []
    assert list(await runtime.observe()) == ["known"]
    assert api_server.get("/api/v1/namespaces/stepway/configmaps/of-the-operator")["data"] == {"a": "b"}


async def test_what_is_left_without_its_intent_is_found_too(runtime: KubernetesRuntime, api_server: ApiServer) -> None:
    await runtime.apply(workload("half"))
    api_server.admin.delete("/api/v1/namespaces/stepway/configmaps/ep-half").raise_for_status()
    assert await runtime.observe() == {}
    assert [one.endpoint_id for one in await runtime.orphans(known=())] == ["half"]
    await runtime.remove("half")
    assert await runtime.orphans(known=()) == []


async def test_what_a_change_no_longer_wants_goes(runtime: KubernetesRuntime, api_server: ApiServer) -> None:
    exposed = workload("exposed", exposure=Exposure(url="http://203.0.113.9", host="exposed.stepway"))
    await runtime.apply(exposed)
    path = "/apis/networking.k8s.io/v1/namespaces/stepway/ingresses"
    assert len(api_server.get(path)["items"]) == 1
    await runtime.apply(workload("exposed", 2))
    assert api_server.get(path)["items"] == []


async def test_deletions_and_edits_by_others_are_seen_and_healed(
    runtime: KubernetesRuntime, api_server: ApiServer
) -> None:
    await runtime.apply(workload("drift"))
    assert (await runtime.observe())["drift"].reason is None
    deployment = "/apis/apps/v1/namespaces/stepway/deployments/ep-drift"
    headers = {"Content-Type": "application/merge-patch+json"}
    api_server.admin.patch(deployment, headers=headers, json={"spec": {"replicas": 7}}).raise_for_status()
    seen = (await runtime.observe())["drift"]
    assert (seen.reason, seen.message) == (
        "changed_by_others",
        "Somebody changed the Deployment ep-drift: spec.replicas.",
    )
    assert (await runtime.heal("drift")).reason is None
    assert api_server.get(deployment)["spec"]["replicas"] == 1

    api_server.admin.delete("/api/v1/namespaces/stepway/services/ep-drift").raise_for_status()
    api_server.admin.delete("/api/v1/namespaces/stepway/secrets/ep-drift").raise_for_status()
    seen = (await runtime.observe())["drift"]
    assert seen.reason == "removed_by_others"
    assert seen.message == "Somebody deleted the Service ep-drift, the Secret ep-drift."
    assert (await runtime.heal("drift", workload("drift"))).reason is None


async def test_every_object_goes_with_the_intent_and_names_its_job(
    runtime: KubernetesRuntime, api_server: ApiServer
) -> None:
    await runtime.apply(llama_cpp())
    uid = api_server.get("/api/v1/namespaces/stepway/configmaps/ep-llama")["metadata"]["uid"]
    paths = ["/api/v1/namespaces/stepway/secrets/ep-llama", "/apis/apps/v1/namespaces/stepway/deployments/ep-llama"]
    for path in [*paths, "/apis/policy/v1/namespaces/stepway/poddisruptionbudgets/ep-llama"]:
        metadata = api_server.get(path)["metadata"]
        assert [one["uid"] for one in metadata["ownerReferences"]] == [uid]
        assert metadata["labels"]["stepway/owner"] == OWNER
        assert metadata["annotations"]["stepway/job"] == "11111111-2222-3333-4444-555555555555"
        assert {one["manager"] for one in metadata["managedFields"]} == {"stepway"}


async def test_quota_and_room_are_told_before_anything_is_made(
    runtime: KubernetesRuntime, api_server: ApiServer
) -> None:
    path = "/api/v1/namespaces/stepway/resourcequotas"
    hard = {"requests.memory": "100Mi", "pods": "10"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small", "namespace": "stepway"}}
    api_server.apply(path, {**quota, "spec": {"hard": hard}})
    try:
        found = await runtime.preview(workload("big", replicas=2))
    finally:
        api_server.admin.delete(f"{path}/small").raise_for_status()
    assert not found.fits
    assert found.needs is not None
    assert (found.needs.memory_bytes, found.needs.cpu_millis, found.needs.workers) == (128 * MIB, 100, 2)
    rooms = {room.resource: room.fits for room in found.quotas}
    assert rooms == {"requests.memory": False, "pods": True}
    assert any("The quota small allows 100Mi of requests.memory" in problem for problem in found.problems)
    assert any("The nodes have room for 0 of 2 workers" in problem for problem in found.problems)


async def test_the_clusters_own_words_for_a_refusal(runtime: KubernetesRuntime) -> None:
    wrong = container(resources=Resources(cpu_millis=200, cpu_limit_millis=100, memory_bytes=64 * MIB))
    with pytest.raises(Refused) as caught:
        await runtime.apply(workload("wrong", container=wrong))
    assert "must be less than or equal to cpu limit" in caught.value.message

"""Previews from the API to what answers them: this machine, a real cluster with its own refusals, one of fake GPU nodes."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from services.app.clusters import onboarding
from services.app.clusters.reach import Reached
from services.app.context import AppContext
from services.app.credentials.tables import CredentialRow
from services.app.internal import AppAccess
from services.app.models.tables import ScanOverrideRow
from services.app.wizards.tables import WorkflowRow
from services.cluster.jobs.tools import ClusterTools
from services.cluster.reach import Reach
from services.cluster.runtimes.kubernetes.objects import GROUPS
from services.cluster.runtimes.local.runtime import LocalRuntime
from services.cluster.sites.local import LocalSite
from services.cluster.sites.preview import preview
from shared.clock import now
from shared.contracts.deployments import DeploySpec
from shared.contracts.models import Manifest, ModelFile
from shared.jobs.tables import JobRow, TopicRow
from shared.objects.store import blob_key, manifest_key
from tests.services.app import rows
from tests.services.app.conftest import People, Person
from tests.services.cluster.runtimes.kubernetes.support import PYTHON, digest_of
from tests.services.cluster.runtimes.kubernetes.test_manifests import hf_model
from tests.services.cluster.runtimes.kubernetes.test_model_bytes import smollm2
from tests.testbed.certificates import as_yaml, kubeconfig
from tests.testbed.cluster import Cluster, cluster
from tests.testbed.kube import ApiServer
from tests.testbed.kwok import KwokCluster, kwok
from tests.testbed.tls_server import silent

__all__ = ["cluster", "kwok"]

Json = dict[str, Any]
CONFIG = {"concurrent_requests": 1, "avg_sequence_length": 64, "avg_context_length": 64}
PROVIDER_KEY = "sk-of-the-provider-7c1f"
SETTINGS = {
    "allow_loopback_clusters": True, "image_llama_cpp": PYTHON, "image_loader": PYTHON,
    "advertised_url": "http://127.0.0.1:9",  # nobody asks it in a preview
}  # fmt: skip
QUOTAS = "/api/v1/namespaces/stepway/resourcequotas"


class Previews:
    def __init__(self, client: httpx.AsyncClient, tools: ClusterTools, context: AppContext, person: Person) -> None:
        self.client, self.tools, self.context, self.person = client, tools, context, person
        self.project = uuid4()

    async def cluster(self, access: bytes, **values: Any) -> UUID:
        cluster_id = uuid4()
        sealed = self.context.keyring.seal(access, onboarding.key_context(cluster_id))
        await rows.insert(self.context.database, rows.cluster(id=cluster_id, sealed=sealed, **values))
        return cluster_id

    async def model(self, files: list[Any], metadata: Any) -> UUID:
        """One whose files nobody reads: only their list is there."""
        manifest = Manifest(digest=digest_of(files), files=files)
        await self.context.objects.put(manifest_key(manifest.digest), manifest.model_dump_json().encode())
        facts = metadata.model_dump(mode="json", exclude={"modality"})
        row = rows.model(digest=manifest.digest, facts=facts, modality=list(metadata.modality) or ["llm"])
        override = ScanOverrideRow(
            id=uuid4(), model_id=row.id, digest=manifest.digest, reason="x", created_by=self.person.id, created_at=now()
        )
        await rows.insert(self.context.database, row, override)
        return row.id

    async def file(self, path: str, content: bytes) -> ModelFile:
        """One that is read."""
        digest = hashlib.sha256(content).hexdigest()
        await self.context.objects.put(blob_key(digest), content)
        return ModelFile(path=path, size=len(content), sha256=digest)

    async def smol(self) -> UUID:
        source, _ = smollm2()
        return await self.model(source.files, source.metadata)

    async def cloud_model(self) -> tuple[UUID, UUID]:
        """The model and a credential for it."""
        credential_id = uuid4()
        sealed = self.context.keyring.seal(
            json.dumps({"api_key": PROVIDER_KEY}).encode(), f"credential:{credential_id}"
        )
        credential = CredentialRow(
            id=credential_id, name=uuid4().hex, type="openai", owner_id=self.person.id, fields={}, sealed=sealed,
            secrets=["api_key"],
        )  # fmt: skip
        model = rows.model(provider_type="cloud_model", uri="openai/gpt-4o", modality=["llm"])
        await rows.insert(self.context.database, credential, model)
        return model.id, credential_id

    async def ask(self, cluster_id: UUID, model_id: UUID, **changes: Any) -> httpx.Response:
        fields = {
            "project_id": str(self.project), "model_id": str(model_id), "cluster_id": str(cluster_id),
            "endpoint_name": "chat", "deploy_config": CONFIG, **changes,
        }  # fmt: skip
        row = WorkflowRow(
            id=uuid4(), type="model_deployment", owner_id=self.person.id, project_id=self.project, current_step=5,
            total_steps=7, status="in_progress", fields=fields, field_steps={}, files={},
        )  # fmt: skip
        await rows.insert(self.context.database, TopicRow(id=row.id), row)
        before = await self.kept()
        answer = await self.client.post(f"/workflows/{row.id}/preview", headers=self.person.headers)
        assert await self.kept() == before
        assert PROVIDER_KEY not in answer.text
        return answer

    async def shown(self, cluster_id: UUID, model_id: UUID, **changes: Any) -> Json:
        answer = await self.ask(cluster_id, model_id, **changes)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    async def kept(self) -> tuple[Any, ...]:
        statement = """SELECT (SELECT count(*) FROM platform.endpoint), (SELECT count(*) FROM platform.audit),
                              (SELECT count(*) FROM jobs.job), (SELECT count(last_used_at) FROM platform.credential),
                              (SELECT sum(revision) FROM platform.workflow), (SELECT sum(seq) FROM jobs.topic)"""
        async with self.context.database.statement() as connection:
            return tuple((await connection.execute(text(statement))).one())


@pytest.fixture
async def previews(
    client: httpx.AsyncClient, app_context: AppContext, runtime: LocalRuntime, people: People, tmp_path: Path
) -> AsyncIterator[Previews]:
    settings = app_context.settings.model_copy(update=SETTINGS)
    machine = LocalSite(uuid4(), runtime, tmp_path / "models", app_context.objects)
    tools = ClusterTools(AppAccess(app_context), app_context.objects, settings, machine)
    app_context.clusters = reach = Reached()
    reach.use(app_context, Reach(tools))
    project = await people.project("p")
    made = Previews(client, tools, app_context, await people.add("member", projects={project: "member"}))
    made.project = project
    await rows.insert(app_context.database, rows.cluster(id=machine.id, kind="local"))
    yield made
    await tools.clients.aclose()


def objects_of(api: ApiServer) -> list[str]:
    """All that is in the namespace, but for what the cluster makes there by itself."""
    found = []
    for kind, (root, plural) in GROUPS.items():
        answer = api.admin.get(f"/{root}/namespaces/stepway/{plural}")
        if kind not in ("Event", "ResourceQuota") and answer.status_code != 404:
            found += [f"{kind}/{one['metadata']['name']}" for one in answer.raise_for_status().json()["items"]]
    return [one for one in found if "/ep-" in one]


def resources_of(shown: Json, kind: str) -> Json:
    (found,) = [one for one in shown["manifests"] if one["kind"] == kind]
    return dict(found)


async def test_this_machine_shows_workers_and_room_and_no_objects(previews: Previews) -> None:
    machine = previews.tools.local
    shown = await previews.shown(machine.id, await previews.smol())
    assert (shown["object"], shown["fits"], shown["problems"], shown["code"]) == ("preview", True, [], None)
    assert shown["manifests"] == shown["quotas"] == []
    plan, needs = shown["plan"], shown["needs"]
    assert (plan["engine"], plan["replicas"], needs["workers"]) == ("llama_cpp", 1, 1)
    assert needs["memory_bytes"] == plan["memory_bytes"] > 0
    assert [(room["of"], room["resource"], room["fits"]) for room in shown["capacity"]] == [
        ("machine", "memory", True), ("machine", "cpu", True),
    ]  # fmt: skip
    assert shown["places"] >= 1
    assert await machine.runtime.observe() == {}
    assert not machine.models.exists()


async def test_what_this_machine_lacks(previews: Previews) -> None:
    machine = previews.tools.local
    smol = await previews.smol()
    shown = await previews.shown(machine.id, smol, deploy_config={**CONFIG, "concurrent_requests": 1000})
    assert (shown["fits"], shown["code"]) == (False, "insufficient_capacity")
    assert "This machine has no room" in shown["problems"][0]
    assert shown["places"] < shown["plan"]["replicas"]
    assert not all(room["fits"] for room in shown["capacity"])
    many = await previews.shown(machine.id, smol, deploy_config={**CONFIG, "concurrent_requests": 100_000})
    assert (many["code"], many["needs"], many["plan"]["engine"]) == ("insufficient_capacity", None, "llama_cpp")
    assert "an endpoint has at most 256" in many["problems"][0]
    model, credential = await previews.cloud_model()
    shown = await previews.shown(machine.id, model, credential_id=str(credential))
    assert (shown["fits"], shown["code"], shown["plan"], shown["needs"]) == (False, "engine_unsupported", None, None)


async def test_a_cluster_shows_what_would_be_applied(previews: Previews, cluster: Cluster) -> None:
    cluster_id = await previews.cluster(cluster.api.access_kubeconfig())
    shown = await previews.shown(cluster_id, await previews.smol())
    assert (shown["fits"], shown["problems"]) == (True, [])
    assert shown["plan"]["engine"] == "llama_cpp"
    assert resources_of(shown, "Deployment")["spec"]["replicas"] == shown["needs"]["workers"] == 1
    assert set(resources_of(shown, "Secret")["data"].values()) == {"(hidden)"}
    assert {"Service", "PodDisruptionBudget", "PersistentVolumeClaim", "Job"} <= {
        one["kind"] for one in shown["manifests"]
    }
    assert shown["needs"]["storage_bytes"] > 0
    assert [(room["of"], room["resource"]) for room in shown["capacity"]] == [("nodes", "cpu"), ("nodes", "memory")]
    assert shown["places"] >= 1
    assert "A pod asks first whether that address is reached" in shown["notes"][-1]
    assert objects_of(cluster.api) == []


async def test_a_cloud_model_passes_the_clusters_own_check_with_its_key_left_sealed(
    previews: Previews, cluster: Cluster
) -> None:
    cluster_id = await previews.cluster(cluster.api.access_kubeconfig(), ingress_url="https://in.example")
    model, credential = await previews.cloud_model()
    shown = await previews.shown(cluster_id, model, credential_id=str(credential))
    assert shown["plan"]["engine"] == "litellm"
    assert [one for one in shown["problems"] if not one.startswith("The nodes have room")] == []
    assert resources_of(shown, "Secret")["data"] == dict.fromkeys(("api-key", "credential-api-key"), "(hidden)")
    assert resources_of(shown, "Ingress")["spec"]["rules"][0]["host"].endswith(".stepway.internal")
    assert objects_of(cluster.api) == []


async def test_the_clusters_quota_its_nodes_and_its_refusals(previews: Previews, cluster: Cluster) -> None:
    cluster_id, smol = await previews.cluster(cluster.api.access_kubeconfig()), await previews.smol()
    name = f"q-{uuid4().hex[:8]}"
    quota: Json = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name, "namespace": "stepway"}}
    hard = {"requests.memory": "1Mi", "count/services": "0", "pods": "1000"}
    cluster.api.apply(QUOTAS, {**quota, "spec": {"hard": hard}})
    try:
        shown = await previews.shown(cluster_id, smol, deploy_config={**CONFIG, "concurrent_requests": 1000})
    finally:
        cluster.api.admin.delete(f"{QUOTAS}/{name}").raise_for_status()
    assert shown["fits"] is False
    said = " ".join(shown["problems"])
    assert f"The quota {name} allows 1Mi of requests.memory" in said
    assert "The nodes have room for" in said
    rooms = {room["resource"]: room["fits"] for room in shown["quotas"] if room["of"] == name}
    assert rooms == {"requests.memory": False, "pods": True}
    assert "exceeded quota" in said  # the cluster's own words for the Service
    assert shown["code"] == "cluster_quota_exceeded"
    assert objects_of(cluster.api) == []


async def test_a_model_for_gpus_is_placed_on_nodes_that_have_them(previews: Previews, kwok: KwokCluster) -> None:
    cluster_id = await previews.cluster(kwok.api.access_kubeconfig())
    source = hf_model()
    model = await previews.model(source.files, source.metadata)
    shown = await previews.shown(cluster_id, model)
    assert (shown["plan"]["engine"], shown["fits"], shown["problems"]) == ("vllm", True, [])
    assert (shown["needs"]["gpu_resource"], shown["needs"]["node_disk_bytes"]) == ("nvidia.com/gpu", 16 * 2**30 + 700)
    gpus = next(room for room in shown["capacity"] if room["resource"] == "nvidia.com/gpu")
    assert gpus["fits"]
    assert int(gpus["limit"]) >= int(gpus["needed"]) >= 1
    server = resources_of(shown, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == gpus["needed"]
    many = await previews.shown(cluster_id, model, deploy_config={**CONFIG, "concurrent_requests": 100_000})
    assert (many["fits"], many["code"]) == (False, "insufficient_capacity")
    assert objects_of(kwok.api) == []


async def test_settings_of_the_engine_go_all_the_way_to_the_pods(previews: Previews, kwok: KwokCluster) -> None:
    """From the wizard to its job's input, and as the job's first step would have it: to arguments and GPUs."""
    cluster_id = await previews.cluster(kwok.api.access_kubeconfig())
    source = hf_model()
    files = [*source.files, await previews.file("adapters/sql/adapter_config.json", b'{"r": 48}')]
    model = await previews.model(files, source.metadata)
    tuning = {
        "max_context": 3000, "dtype": "bfloat16", "quantization": "fp8", "gpu_memory_share": 0.75, "tensor_parallel": 2,
        "pipeline_parallel": 1, "tool_parser": "hermes", "lora": {"sql": "adapters/sql"},
    }  # fmt: skip
    body = {
        "workflow_total_steps": 6, "step_number": 5, "project_id": str(previews.project), "model_id": str(model),
        "cluster_id": str(cluster_id), "endpoint_name": "chat", "deploy_config": CONFIG, "tuning": tuning,
    }  # fmt: skip
    headers = previews.person.headers
    draft = (await previews.client.post("/models/deploy-workflow", json=body, headers=headers)).json()
    shown = (await previews.client.post(f"/workflows/{draft['workflow_id']}/preview", headers=headers)).json()
    assert (shown["fits"], shown["problems"], shown["plan"]["context_tokens"]) == (True, [], 3000)

    again = {"workflow_id": draft["workflow_id"], "step_number": 5, "trigger_workflow": True}
    answer = await previews.client.post("/models/deploy-workflow", json=again, headers=headers)
    async with previews.context.database.transaction() as session:
        job = await session.get_one(JobRow, UUID(answer.json()["job"]["id"]))
    site = previews.tools.kubernetes(cluster_id, kwok.api.access_kubeconfig(), None)
    made = await preview(site, DeploySpec.model_validate(job.input), [])
    for manifests in (shown["manifests"], made.manifests):
        (found,) = [one for one in manifests if one["kind"] == "Deployment"]
        server = found["spec"]["template"]["spec"]["containers"][0]
        assert {
            "--max-model-len=3000", "--dtype=bfloat16", "--quantization=fp8", "--gpu-memory-utilization=0.75",
            "--tensor-parallel-size=2", "--pipeline-parallel-size=1", "--tool-call-parser=hermes",
            "--enable-auto-tool-choice", "--enable-lora", "--max-lora-rank=64", "sql=/models/adapters/sql",
        } <= {*server["args"]}  # fmt: skip
        assert server["resources"]["limits"]["nvidia.com/gpu"] == "2"


@pytest.mark.parametrize(
    ("tuning", "code", "said"),
    [
        (
            {"tensor_parallel": 3},
            "tuning_unsupported",
            "tensor_parallel 3 does not divide the model's 32 attention heads",
        ),
        ({"tensor_parallel": 32}, "insufficient_capacity", "asks for 32 GPUs of one node"),
        ({"lora": {"sql": "adapters/sql"}}, "tuning_unsupported", "no LoRA adapter adapters/sql"),
        ({"max_context": 9000}, "tuning_unsupported", "the model takes 8192"),
    ],
)
async def test_what_an_engine_on_a_cluster_cannot_follow_is_said_before(
    previews: Previews, kwok: KwokCluster, tuning: Json, code: str, said: str
) -> None:
    cluster_id, source = await previews.cluster(kwok.api.access_kubeconfig()), hf_model()
    shown = await previews.shown(cluster_id, await previews.model(source.files, source.metadata), tuning=tuning)
    assert (shown["fits"], shown["code"], shown["plan"]) == (False, code, None)
    assert said in shown["problems"][0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"r": 1024}', "of rank 512 at most, and one has 1024"), (b'{"r": "8"}', "does not tell its rank"),
        (b'{"r": true}', "does not tell its rank"), (b"[" * 100_000, "does not tell its rank"), (b"[]", "does not tell its rank"),
        (b'{"r": 8}' + b" " * 300_000, "does not tell its rank"), (b"\xff", "does not tell its rank"),
    ],
    ids=range(7),
)  # fmt: skip
async def test_an_adapter_says_its_rank_or_is_refused(
    previews: Previews, kwok: KwokCluster, content: bytes, said: str
) -> None:
    cluster_id, source = await previews.cluster(kwok.api.access_kubeconfig()), hf_model()
    files = [*source.files, await previews.file("sql/adapter_config.json", content)]
    shown = await previews.shown(
        cluster_id, await previews.model(files, source.metadata), tuning={"lora": {"a": "sql"}}
    )
    assert (shown["fits"], shown["code"]) == (False, "tuning_unsupported")
    assert said in shown["problems"][0]


async def test_llama_cpp_follows_the_longest_request_and_says_what_it_does_not(
    previews: Previews, cluster: Cluster
) -> None:
    cluster_id, smol = await previews.cluster(cluster.api.access_kubeconfig()), await previews.smol()
    shown = await previews.shown(cluster_id, smol, tuning={"max_context": 1024})
    server = resources_of(shown, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert shown["plan"]["context_tokens"] == 1024
    assert "1024" in dict(zip(server["args"], server["args"][1:], strict=False))["--ctx-size"]
    refused = await previews.shown(cluster_id, smol, tuning={"tensor_parallel": 2})
    assert (refused["fits"], refused["code"]) == (False, "tuning_unsupported")
    assert refused["problems"] == ["The engine llama_cpp has no such setting: tensor_parallel."]
    here = await previews.shown(previews.tools.local.id, smol, tuning={"max_context": 1024})
    assert here["plan"]["context_tokens"] == 1024


async def test_a_cluster_that_does_not_answer_is_a_problem(previews: Previews, monkeypatch: pytest.MonkeyPatch) -> None:
    smol = await previews.smol()
    nowhere = await previews.cluster(as_yaml(kubeconfig(cluster={"server": "https://127.0.0.1:9"})))
    refused = await previews.ask(nowhere, smol)
    assert (refused.status_code, refused.json()["code"]) == (503, "cluster_refused")
    monkeypatch.setattr("services.app.wizards.preview.SECONDS", 0.5)
    async with silent() as server:
        hung = await previews.ask(
            await previews.cluster(as_yaml(kubeconfig(cluster={"server": f"https://127.0.0.1:{server.port}"}))), smol
        )
    assert (hung.status_code, hung.json()["code"]) == (503, "cluster_answer_timeout")
    elsewhere = await previews.cluster(b"", kind="local")
    other = await previews.ask(elsewhere, smol)
    assert (other.status_code, other.json()["code"]) == (409, "cluster_not_ready")


async def test_credentials_that_the_cluster_refuses_are_a_problem(previews: Previews, cluster: Cluster) -> None:
    cluster_id = await previews.cluster(cluster.api.kubeconfig_file(token="of-another-cluster"))
    answer = await previews.ask(cluster_id, await previews.smol())
    assert (answer.status_code, answer.json()["code"]) == (422, "cluster_unauthorized")

"""A real cluster as a site: what is planned for it, whether there is room, whether its pods reach us."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from services.cluster.runtimes.base import UnknownEndpoint
from services.cluster.runtimes.kubernetes.recent import Recent
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from services.cluster.sites.kubernetes import KubernetesSite
from shared.contracts.deployments import DeploySpec, ServedConfig
from shared.contracts.models import Manifest, ModelMetadata
from shared.jobs.outcomes import Permanent, Retry
from shared.objects import DirectoryStore
from shared.objects.store import manifest_key
from shared.security.loader_token import token_of
from shared.settings import Settings
from tests.services.cluster.runtimes.kubernetes.support import PYTHON, connected, digest_of, file_of, workload
from tests.testbed.cluster import Cluster

KEY = "sk-worker-key"
CREDENTIAL = {"api_key": SecretStr("sk-of-the-provider"), "api_base": SecretStr("https://models.example")}
IMAGES: dict[str, Any] = {"image_llama_cpp": PYTHON, "image_loader": PYTHON}
SHAPE = ModelMetadata(format="gguf", context_length=2048, layers=2, hidden_size=64, vocabulary_size=1000)


@pytest.fixture
async def runtime(cluster: Cluster) -> AsyncIterator[KubernetesRuntime]:
    async with connected(cluster.api) as runtime:
        yield runtime
        await runtime.remove_all()


@pytest.fixture
def objects(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "objects")


@pytest.fixture
def stepway(cluster: Cluster) -> Iterator[str]:
    """Answers as Stepway does to a request without a token."""
    with ThreadingHTTPServer((cluster.host, 0), _Refusal) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{cluster.host}:{server.server_port}"
        server.shutdown()
        thread.join()


class _Refusal(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.dumps({"code": "unauthenticated"} if "/endpoints/" in self.path else {}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


async def spec_of(objects: DirectoryStore, **changes: Any) -> DeploySpec:
    file = file_of("model.gguf", b"GGUF" * 100)
    manifest = Manifest(digest=digest_of([file]), files=[file])
    await objects.put(manifest_key(manifest.digest), manifest.model_dump_json().encode())
    config = ServedConfig(concurrent_requests=1, avg_sequence_length=64, avg_context_length=64)
    values: dict[str, Any] = {
        "endpoint_id": uuid4(), "project_id": uuid4(), "name": "smol", "model_id": uuid4(), "digest": manifest.digest,
        "metadata": SHAPE, "cluster_id": uuid4(), "config": config, "generation": 1,
    }  # fmt: skip
    return DeploySpec(**{**values, **changes})


async def test_a_plan_holds_no_secret_and_its_workload_passes_the_clusters_own_check(
    runtime: KubernetesRuntime, objects: DirectoryStore
) -> None:
    site = KubernetesSite(runtime, Settings(**IMAGES), objects, ingress_url="https://in.example")
    spec = await spec_of(objects)
    said: list[str] = []
    plan = await site.plan(spec, on_progress=lambda _, message: said.append(message))
    assert said == ["No address at which pods reach us is set: the model is sent through the API server."]
    await site.check(await site.workload(spec, plan, key=None))
    made = await site.workload(spec, plan, key=KEY, job=uuid4())
    assert made.secrets["loader-token"].get_secret_value() == token_of(KEY, spec.endpoint_id)
    assert made.exposure is not None
    assert made.exposure.host == f"{spec.endpoint_id}.stepway.internal"
    assert KEY not in plan.model_dump_json() + made.model_dump_json()
    assert await runtime.orphans(known=()) == []


async def test_a_cloud_model_is_a_proxy_with_the_credential_in_its_secret(
    runtime: KubernetesRuntime, objects: DirectoryStore
) -> None:
    site = KubernetesSite(runtime, Settings(), objects)
    spec = await spec_of(objects, digest=None, uri="openai/gpt-4o", metadata=ModelMetadata(modality=["llm"]))
    plan = await site.plan(spec, parameters=list(CREDENTIAL))
    assert (plan.engine, plan.delivery) == ("litellm", None)
    await site.check(await site.workload(spec, plan, key=None))
    made = await site.workload(spec, plan, key=KEY, secrets=CREDENTIAL)
    values = {name: value.get_secret_value() for name, value in made.secrets.items()}
    assert values == {"credential-api-key": "sk-of-the-provider", "credential-api-base": "https://models.example"}
    assert "sk-of-the-provider" not in plan.model_dump_json() + made.model_dump_json()
    with pytest.raises(Permanent, match="provider/model"):
        await site.plan(spec.model_copy(update={"uri": "nonsense"}))


async def test_what_lacks_is_named_before_anything_is_made(runtime: KubernetesRuntime, objects: DirectoryStore) -> None:
    site = KubernetesSite(runtime, Settings(**IMAGES), objects)
    spec = await spec_of(objects)
    plan = await site.plan(spec)
    with pytest.raises(Permanent, match=r"have room for \d+ of 200 workers") as refusal:
        await site.check(await site.workload(spec, plan, key=None, replicas=200))
    assert refusal.value.code == "insufficient_capacity"
    with pytest.raises(Permanent, match="at most 256"):
        await site.workload(spec, plan, key=None, replicas=257)
    large = spec.model_copy(update={"metadata": SHAPE.model_copy(update={"weights_bytes": 1 << 50})})
    with pytest.raises(Permanent, match="the largest node has") as refusal:
        await site.plan(large)
    assert refusal.value.code == "insufficient_capacity"
    assert await runtime.orphans(known=()) == []


@pytest.mark.parametrize("minutes", [0, 60])
async def test_a_node_that_has_just_gone_is_waited_for(
    runtime: KubernetesRuntime, objects: DirectoryStore, cluster: Cluster, minutes: int
) -> None:
    site = KubernetesSite(runtime, Settings(**IMAGES), objects)
    large = await spec_of(objects, metadata=SHAPE.model_copy(update={"weights_bytes": 1 << 50}))
    with node_away(cluster, datetime.now(UTC) - timedelta(minutes=minutes)):
        runtime.client.recent_nodes = Recent(0.0)
        with pytest.raises(Permanent if minutes else Retry, match="the largest node has") as refusal:
            await site.plan(large)
        with pytest.raises(Permanent):  # who only looks is told at once
            await site.plan(large, dry=True)
    assert refusal.value.code == ("insufficient_capacity" if minutes else "cluster_nodes_away")
    assert ("The node away is not ready at the moment." in refusal.value.message) is (minutes == 0)


@contextmanager
def node_away(cluster: Cluster, since: datetime) -> Iterator[None]:
    """A node that is not ready any more."""
    path = "/api/v1/nodes"
    ready = {"type": "Ready", "status": "False", "lastTransitionTime": since.strftime("%Y-%m-%dT%H:%M:%SZ")}
    made = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "away"}}
    cluster.api.admin.post(path, json=made).raise_for_status()
    try:
        status = cluster.api.get(f"{path}/away")
        status["status"]["conditions"] = [ready]
        del status["metadata"]["resourceVersion"]  # the cluster's own servers write to it too
        cluster.api.admin.put(f"{path}/away/status", json=status).raise_for_status()
        yield
    finally:
        cluster.api.admin.delete(f"{path}/away").raise_for_status()


async def test_only_the_workers_that_are_missing_need_room(runtime: KubernetesRuntime, objects: DirectoryStore) -> None:
    site = KubernetesSite(runtime, Settings(), objects)
    endpoint = uuid4()
    with pytest.raises(UnknownEndpoint):
        await site.check_more(endpoint, 0, 1, 0)
    half = (await runtime.inspect()).nodes[0].memory_available_bytes * 6 // 10
    asked = workload(str(endpoint), memory_bytes=half)
    assert asked.container is not None
    resources = asked.container.resources.model_copy(update={"memory_bytes": half})
    await runtime.apply(
        asked.model_copy(update={"container": asked.container.model_copy(update={"resources": resources})})
    )
    await runtime.wait_ready(str(endpoint), 1, 60)
    await site.check_more(endpoint, 1, 1, half)
    with pytest.raises(Permanent, match="have room for 0 of 1 workers") as refusal:
        await site.check_more(endpoint, 1, 2, half)
    assert refusal.value.code == "insufficient_capacity"


async def test_a_pod_tells_whether_we_are_reached(
    runtime: KubernetesRuntime, objects: DirectoryStore, stepway: str
) -> None:
    reached: dict[tuple[str, str], float] = {}
    spec = await spec_of(objects)
    site = KubernetesSite(runtime, Settings(advertised_url=stepway, **IMAGES), objects, reached=reached)
    plan = await site.plan(spec)
    assert plan.delivery is not None
    assert (plan.delivery.mode, plan.delivery.url) == ("claim", f"{stepway}/endpoints/{spec.endpoint_id}/model-files")
    assert list(reached) == [(runtime.owner, stepway)]
    said: list[str] = []
    await site.plan(spec, on_progress=lambda _, message: said.append(message))
    assert len(said) == 1  # nobody was asked again
    elsewhere = stepway.replace("http:", "https:")
    site = KubernetesSite(runtime, Settings(advertised_url=elsewhere, **IMAGES), objects, reached=reached)
    plan = await site.plan(spec, on_progress=lambda _, message: said.append(message))
    assert plan.delivery is not None
    assert plan.delivery.mode == "push"
    assert "SSL" in said[-1]
    async with asyncio.timeout(60):
        while await runtime.orphans(known=()):  # the cluster takes the pods of a Job a moment after it
            await asyncio.sleep(0.1)

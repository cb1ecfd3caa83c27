"""Through the gateway to real pods, by a real API server: what is published leads there, and faults lead elsewhere."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from pydantic import SecretStr

from services.app.clusters.tables import ClusterRow
from services.app.endpoints.tables import EndpointRow
from services.cluster.engines.base import DeployConfig
from services.cluster.engines.images import Images
from services.cluster.engines.llama_cpp_container import LlamaCppContainer
from services.cluster.runtimes.containers import Delivery
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from shared.contracts.deployments import Tuning
from tests.services.app import rows
from tests.services.app.conftest import People, Person
from tests.services.app.endpoints.conftest import Running, SlowStore, make_served, running, store
from tests.services.cluster.runtimes.kubernetes.support import SERVER, connected, container, workload
from tests.services.cluster.runtimes.kubernetes.test_model_bytes import smollm2
from tests.services.embedded.test_publisher import WORKER_KEY, Platform, platform
from tests.testbed.cluster import Cluster, cluster
from tests.testbed.machine import need

__all__ = ["cluster", "platform", "store"]

QUESTION = {
    "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
    "temperature": 0,
    "max_tokens": 24,
}
# Its answers do not end by themselves, and it says whether a client has gone.
ENDLESS = (
    SERVER.replace("range(3)", "range(10**6)")
    .replace(
        "def do_POST(self):",
        "def do_POST(self):\n"
        "        try: self.answer_on()\n"
        "        except OSError: open('/tmp/gone', 'w').close()\n"
        "    def answer_on(self):",
    )
    .replace("os.uname().nodename", "str(os.path.exists('/tmp/gone'))")
)


class Cloud:
    """The platform with a registered cluster, and somebody who may use what is there."""

    def __init__(self, platform: Platform, runtime: KubernetesRuntime, cluster_id: UUID, person: Person) -> None:
        self.platform = platform
        self.runtime = runtime
        self.cluster_id = cluster_id
        self.person = person

    async def endpoint(self, replicas: int = 1, **changes: Any) -> UUID:
        endpoint_id = await self.platform.endpoint(self.cluster_id)
        given = {"replicas": replicas, "api_key": SecretStr(WORKER_KEY), **changes}
        await self.runtime.apply(workload(str(endpoint_id), **given))
        await self.show(endpoint_id, replicas)
        return endpoint_id

    async def show(self, endpoint_id: UUID, replicas: int = 1, timeout: float = 60) -> None:
        """Observe and publish."""
        seen = await self.runtime.wait_ready(str(endpoint_id), replicas, timeout)
        observed = seen.model_dump(mode="json", exclude_none=True)
        await self.platform.change(EndpointRow, endpoint_id, observed=observed, published_at=seen.observed_at)
        route = await self.platform.route(endpoint_id)
        assert len(route.workers) == replicas

    def gateway(self, host: str = "127.0.0.1") -> AbstractAsyncContextManager[Running]:
        return running(self.platform.context, host, routes=self.platform.table)

    def client(self, app: Running, endpoint_id: UUID) -> httpx.AsyncClient:
        base = f"{app.url}/endpoints/{endpoint_id}/v1"
        return httpx.AsyncClient(base_url=base, headers=self.person.headers, timeout=60, trust_env=False)

    async def seal(self, kubeconfig: bytes) -> None:
        sealed = self.platform.sealed(self.cluster_id, kubeconfig)
        await self.platform.change(ClusterRow, self.cluster_id, sealed=sealed)
        await self.platform.publisher.refresh()


@pytest.fixture
async def cloud(cluster: Cluster, platform: Platform, people: People) -> AsyncIterator[Cloud]:
    cluster_id = uuid4()
    sealed = platform.sealed(cluster_id, cluster.api.access_kubeconfig())
    await rows.insert(platform.context.database, rows.cluster(id=cluster_id, sealed=sealed))
    person = await people.add("member", projects={platform.project: "member"})
    async with connected(cluster.api) as runtime:
        yield Cloud(platform, runtime, cluster_id, person)
        await runtime.remove_all()


async def test_real_tokens_are_streamed_from_a_pod_that_fetched_its_model_from_us(
    cloud: Cloud, cluster: Cluster, people: People, store: SlowStore
) -> None:
    need(images=("llama",))
    cluster.load("llama")
    source, _ = smollm2()
    context = cloud.platform.context
    contents = {file.path: (source.directory / file.path).read_bytes() for file in source.files}
    served = await make_served(context, people, store, contents)
    await cloud.platform.change(
        EndpointRow,
        served.id,
        project_id=cloud.platform.project,
        cluster_id=cloud.cluster_id,
        desired={"concurrency": 2},
    )
    images = Images(llama_cpp="stepway-testbed/llama:1", llama_cpp_program="xllamacpp", loader=None)
    nodes = (await cloud.runtime.inspection()).nodes
    made = LlamaCppContainer(images).container_plan(source, DeployConfig(), nodes, Tuning())
    async with cloud.gateway(cluster.host) as app:
        brought = Delivery(mode="fetch", digest=served.digest, files=served.files, url=f"{app.url}{served.path}")
        wanted = workload(
            str(served.id), container=made.container, memory_bytes=made.memory_bytes, delivery=brought,
            api_key=SecretStr(served.worker_key), secrets={"loader-token": SecretStr(served.token)},
        )  # fmt: skip
        await cloud.runtime.apply(wanted)
        await cloud.show(served.id, timeout=150)
        async with cloud.client(app, served.id) as client:
            whole = (await client.post("/chat/completions", json=QUESTION)).raise_for_status().json()
            assert "Paris" in whole["choices"][0]["message"]["content"]
            async with client.stream("POST", "/chat/completions", json={**QUESTION, "stream": True}) as answer:
                assert answer.status_code == 200
                lines = [line async for line in answer.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    deltas = [json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-1]]
    text = "".join(choices[0]["delta"].get("content") or "" for choices in deltas if choices)
    assert "Paris" in text
    assert len(deltas) > 5


async def test_a_pod_that_is_gone_is_passed_over(cloud: Cloud, cluster: Cluster) -> None:
    """The table still names it: the API server's word for it is taken, and the other pod is asked."""
    endpoint_id = await cloud.endpoint(replicas=2)
    route = cloud.platform.table.get(endpoint_id)
    assert route is not None
    path = f"/api/v1/namespaces/stepway/pods/{route.workers[0].id}"
    cluster.api.admin.delete(path, params={"gracePeriodSeconds": "0"}).raise_for_status()
    async with cloud.gateway() as app, cloud.client(app, endpoint_id) as client:
        for _ in range(4):
            answer = await client.post("/completions", json={"stream": True})
            assert (answer.status_code, answer.text.count("data: ")) == (200, 3)


async def test_a_client_that_goes_frees_its_pod(cloud: Cloud) -> None:
    endpoint_id = await cloud.endpoint(container=container(ENDLESS, environment={"BETWEEN": "0.02"}))
    route = cloud.platform.table.get(endpoint_id)
    assert route is not None
    (worker,) = route.workers
    key = {"Authorization": f"Bearer {WORKER_KEY}"}
    async with (
        httpx.AsyncClient(transport=worker.transport, base_url=worker.url, headers=key) as pod,
        cloud.gateway() as app,
        cloud.client(app, endpoint_id) as client,
    ):
        async with client.stream("POST", "/completions", json={"stream": True}) as answer:
            assert (await anext(answer.aiter_bytes())).startswith(b"data: 0 ")
            assert (await pod.get("/")).text == "False"
        async with asyncio.timeout(30):
            while (await pod.get("/")).text != "True":
                await asyncio.sleep(0.1)


async def test_credentials_that_the_cluster_refuses_and_those_that_replace_them(cloud: Cloud, cluster: Cluster) -> None:
    endpoint_id = await cloud.endpoint()
    api = cluster.api
    refused = [api.kubeconfig_file(token="of-another-cluster"), api.kubeconfig_file(token=api.token("default"))]
    async with cloud.gateway() as app, cloud.client(app, endpoint_id) as client:
        for kubeconfig in refused:  # one that it does not know, one of an account without rights
            await cloud.seal(kubeconfig)
            answer = await client.post("/completions", json={})
            said = answer.json()["error"]
            assert (answer.status_code, said["code"]) == (503, "endpoint_unavailable")
            assert said["message"] == "The worker could not be reached."
        await cloud.seal(api.access_kubeconfig())
        answer = await client.post("/completions", json={"stream": True})
        assert (answer.status_code, answer.text.count("data: ")) == (200, 3)

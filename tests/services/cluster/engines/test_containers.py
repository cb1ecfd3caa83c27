"""The engines as containers: what they refuse, what they plan for which nodes, and that no secret is in a plan."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cluster.engines.base import (
    CloudModel,
    ContainerPlan,
    DeployConfig,
    EnginePlan,
    ModelSource,
    Plan,
    SettingUnsupported,
    Unsupported,
)
from services.cluster.engines.images import Images
from services.cluster.engines.litellm import LiteLlm, secret_name
from services.cluster.engines.llama_cpp import LlamaCpp
from services.cluster.engines.llama_cpp_container import LlamaCppContainer
from services.cluster.engines.registry import ENGINES, cloud_engine, container_engine_for, container_engines
from services.cluster.engines.vllm import Vllm
from services.cluster.engines.vllm_key import KeyHeader
from shared.contracts.clusters import NodeFacts, NodeGpu
from shared.contracts.deployments import FOLLOWED, Tuning
from shared.contracts.models import ModelFile, ModelMetadata

Json = dict[str, Any]
GIB = 1024**3
L4 = NodeGpu(resource="nvidia.com/gpu", count=4, product="NVIDIA-L4", memory=24 * GIB)
H100 = NodeGpu(resource="nvidia.com/gpu", count=8, product="NVIDIA-H100", memory=80 * GIB)
LLAMA_8B = ModelMetadata(
    attention_heads=32,
    layers=32,
    kv_bytes_per_token=131_072,
    context_length=8192,
    modality=["llm"],
    weights_bytes=16 * GIB,
)
LLAMA_70B = LLAMA_8B.model_copy(
    update={"attention_heads": 64, "layers": 80, "kv_bytes_per_token": 327_680, "weights_bytes": 140 * GIB}
)


def node(*gpus: NodeGpu, name: str = "n1", **changes: Any) -> NodeFacts:
    values: dict[str, Any] = {
        "ready": True, "schedulable": True, "cpu_millis_allocatable": 16_000, "memory_allocatable": 64 * GIB, "os": "linux",
    }  # fmt: skip
    return NodeFacts(name=name, gpus=list(gpus), **{**values, **changes})


def files(*names: str, size: int = 1000) -> list[ModelFile]:
    return [ModelFile(path=name, size=size, sha256="0" * 64) for name in names]


def source(metadata: ModelMetadata, *names: str) -> ModelSource:
    given = files(*(names or ("config.json", "model.safetensors")))
    return ModelSource(name="a model", directory=Path("/unused"), files=given, metadata=metadata)


def vllm(
    metadata: ModelMetadata, *nodes: NodeFacts, tuning: Tuning | None = None, names: tuple[str, ...] = (), **config: int
) -> ContainerPlan:
    return Vllm(Images()).container_plan(source(metadata, *names), DeployConfig(**config), nodes, tuning or Tuning())


def option(made: ContainerPlan, name: str) -> str:
    (value,) = [part.partition("=")[2] for part in made.container.args if part.startswith(f"--{name}=")]
    return value


# --- which engine


def test_the_model_and_the_nodes_pick_the_engine() -> None:
    images = Images()
    assert container_engine_for(files("a.gguf"), ModelMetadata(), [node()], images).name == "llama_cpp"
    hugging_face = files("config.json", "model.safetensors")
    assert container_engine_for(hugging_face, LLAMA_8B, [node(L4)], images).name == "vllm"
    with pytest.raises(Unsupported, match="vLLM needs a GPU, and no node of the cluster has one"):
        container_engine_for(hugging_face, LLAMA_8B, [node()], images)
    with pytest.raises(Unsupported, match="no node that is ready"):
        container_engine_for(files("a.gguf"), ModelMetadata(), [node(ready=False)], images)
    names = [engine.name for engine in container_engines(images)] + [cloud_engine(images).name]
    assert sorted(names) == sorted(FOLLOWED)
    assert {engine.name for engine in ENGINES} <= FOLLOWED.keys()


# --- vllm


@pytest.mark.parametrize(
    ("metadata", "nodes", "tensor", "pipeline", "products"),
    [
        (LLAMA_8B, [node(L4)], "1", "1", ["NVIDIA-L4"]),
        (LLAMA_8B, [node(H100), node(L4, name="n2")], "1", "1", ["NVIDIA-H100", "NVIDIA-L4"]),
        (LLAMA_70B, [node(L4), node(H100, name="n2")], "4", "1", ["NVIDIA-H100"]),
        (LLAMA_70B.model_copy(update={"attention_heads": 63}), [node(H100)], "1", "3", ["NVIDIA-H100"]),
        (LLAMA_8B, [node(L4.model_copy(update={"product": None}))], "1", "1", []),
    ],
)
def test_vllm_takes_the_fewest_gpus_that_hold_the_model(
    metadata: ModelMetadata, nodes: list[NodeFacts], tensor: str, pipeline: str, products: list[str]
) -> None:
    made = vllm(metadata, *nodes)
    assert (option(made, "tensor-parallel-size"), option(made, "pipeline-parallel-size")) == (tensor, pipeline)
    gpus = made.container.resources.gpus
    assert gpus is not None
    assert (gpus.count, gpus.products) == (int(tensor) * int(pipeline), products)


def test_vllm_says_how_much_is_missing() -> None:
    with pytest.raises(Unsupported, match=r"needs 14\d GiB of GPU memory .* largest node has 4 × 24 GiB"):
        vllm(LLAMA_70B, node(L4))
    with pytest.raises(Unsupported):
        vllm(LLAMA_8B, node(H100, schedulable=False))


LLAMA_405B = LLAMA_8B.model_copy(
    update={"attention_heads": 128, "layers": 126, "kv_bytes_per_token": 516_096, "weights_bytes": 810 * GIB}
)
T4 = NodeGpu(resource="nvidia.com/gpu", count=1, product="Tesla-T4", memory=16 * GIB)


@pytest.mark.parametrize(
    ("metadata", "nodes", "pods", "gpus", "product"),
    [
        (LLAMA_405B, [node(H100, name=f"h{n}") for n in range(3)], 2, 8, "NVIDIA-H100"),
        (LLAMA_70B, [node(L4, name=f"l{n}") for n in range(3)], 2, 4, "NVIDIA-L4"),
        (LLAMA_70B, [*(node(T4, name=f"t{n}") for n in range(40)), *(node(L4, name=f"l{n}") for n in range(3))],
         2, 4, "NVIDIA-L4"),
        (LLAMA_8B, [node(T4, name=f"t{n}") for n in range(4)], 2, 1, "Tesla-T4"),
        (LLAMA_8B, [node(T4.model_copy(update={"product": None}), name=f"t{n}") for n in range(4)], 2, 1, None),
    ],
    ids=["405B", "70B", "the fewest nodes", "one GPU each", "nodes that do not say what they have"],
)  # fmt: skip
def test_vllm_spans_nodes_of_one_kind_where_none_holds_the_model(
    metadata: ModelMetadata, nodes: list[NodeFacts], pods: int, gpus: int, product: str | None
) -> None:
    made = vllm(metadata, *nodes)
    found = made.container.resources.gpus
    assert found is not None
    assert (made.container.pods, found.count, found.products) == (pods, gpus, [product] if product else [])
    assert (option(made, "tensor-parallel-size"), option(made, "pipeline-parallel-size")) == (str(gpus), str(pods))
    assert option(made, "distributed-executor-backend") == "ray"
    assert made.container.command == [
        "python3", "/etc/stepway/files/vllm_group.py", "--port=8000", "--", "vllm", "serve", "/models",
    ]  # fmt: skip
    assert set(made.container.files) == {"vllm_key.py", "vllm_group.py"}
    assert (made.memory_bytes, made.threads) == (pods * made.container.resources.memory_bytes, 2 * pods * gpus)


def test_vllm_stays_on_one_node_as_long_as_fewer_requests_at_a_time_fit_there() -> None:
    nodes = [node(L4), node(L4, name="n2")]
    made = vllm(LLAMA_8B, *nodes, concurrent_requests=256, avg_context_length=8000, avg_sequence_length=100)
    assert (made.container.pods, made.container.command) == (1, ["vllm", "serve", "/models"])
    assert made.replicas > 1
    assert "distributed-executor-backend" not in "".join(made.container.args)


def test_vllm_spans_no_more_nodes_than_there_are_nor_of_two_kinds() -> None:
    with pytest.raises(Unsupported, match=r"largest node has 8 × 80 GiB\.$"):
        vllm(LLAMA_405B, node(H100), node(L4, name="n2"))
    with pytest.raises(Unsupported, match=r"Together, the 2 nodes of that kind do not hold it either\."):
        vllm(LLAMA_70B.model_copy(update={"weights_bytes": 400 * GIB}), node(L4), node(L4, name="n2"))
    shallow = LLAMA_70B.model_copy(update={"layers": 1})
    with pytest.raises(Unsupported):
        vllm(shallow, node(L4), node(L4, name="n2"))
    made = vllm(LLAMA_8B, node(L4), node(L4, name="n2"), tuning=Tuning(tensor_parallel=4, pipeline_parallel=2))
    assert (made.container.pods, made.memory_bytes // made.container.resources.memory_bytes) == (2, 2)


def test_vllm_takes_what_an_operator_sets() -> None:
    adapters = ("config.json", "model.safetensors", "lora/sql/adapter_config.json")
    tuning = Tuning(
        dtype="bfloat16", quantization="fp8", gpu_memory_share=0.8, tensor_parallel=2, pipeline_parallel=1,
        tool_parser="hermes", max_context=4096,
        lora={"sql": "lora/sql"},
    )  # fmt: skip
    made = vllm(LLAMA_8B, node(L4), tuning=tuning, names=adapters, concurrent_requests=300, avg_context_length=9000)
    expected = {
        "dtype": "bfloat16", "quantization": "fp8", "gpu-memory-utilization": "0.8", "tensor-parallel-size": "2",
        "tool-call-parser": "hermes", "max-model-len": "4096", "served-model-name": "a model",
    }  # fmt: skip
    assert {name: option(made, name) for name in expected} == expected
    assert made.container.args[-1] == "sql=/models/lora/sql"
    assert "--enable-auto-tool-choice" in made.container.args
    assert (made.replicas, made.concurrency, made.context_tokens) == (16, 19, 4096)  # what two GPUs have cache for
    assert made.container.shared_memory_bytes == 4 * GIB
    with pytest.raises(Unsupported, match="no LoRA adapter other"):
        vllm(LLAMA_8B, node(L4), tuning=Tuning(lora={"x": "other"}), names=adapters)
    longer = vllm(LLAMA_8B, node(L4), tuning=Tuning(max_context=8000))
    assert (longer.context_tokens, vllm(LLAMA_8B, node(L4)).context_tokens) == (8000, 2048)


def test_vllm_needs_more_gpus_for_a_wider_type_and_for_less_of_each() -> None:
    def gpus(tuning: Tuning) -> int:
        resources = vllm(LLAMA_70B, node(H100), tuning=tuning).container.resources
        assert resources.gpus is not None
        return resources.gpus.count

    assert gpus(Tuning()) < gpus(Tuning(dtype="float32"))
    assert gpus(Tuning()) < gpus(Tuning(gpu_memory_share=0.4))


@pytest.mark.parametrize(
    ("tuning", "code", "said"),
    [
        (
            {"tensor_parallel": 3},
            "tuning_unsupported",
            "tensor_parallel 3 does not divide the model's 32 attention heads",
        ),
        ({"pipeline_parallel": 64}, "tuning_unsupported", "pipeline_parallel 64 is more than the model's 32 layers"),
        ({"tensor_parallel": 8}, "insufficient_capacity", "asks for 8 GPUs of one node, and none has more than 4"),
        ({"pipeline_parallel": 7}, "engine_unsupported", "It is to be split by pipeline_parallel 7"),
        ({"max_context": 1_000_000}, "tuning_unsupported", "requests of 1000000 tokens, and the model takes 8192"),
        ({"lora": {"sql": "none"}}, "tuning_unsupported", "no LoRA adapter none"),
    ],
)
def test_vllm_refuses_what_model_or_nodes_do_not_have(tuning: Json, code: str, said: str) -> None:
    with pytest.raises(Unsupported, match=said) as caught:
        vllm(LLAMA_8B, node(L4), tuning=Tuning(**tuning))
    assert caught.value.code == code


def test_vllm_neither_downloads_nor_trusts_code_and_has_the_time_to_load() -> None:
    made = vllm(LLAMA_70B, node(H100))
    assert made.container.environment["HF_HUB_OFFLINE"] == "1"
    assert not any("trust" in part for part in made.container.args)
    assert made.container.probes.start_seconds > 140 * GIB / (100 * 1024**2) - 1
    assert made.container.secret_environment == {"VLLM_API_KEY": "api-key"}


async def test_vllm_takes_its_key_from_the_header_that_proxies_leave() -> None:
    seen: list[dict[bytes, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]))

    for headers in ([(b"X-Api-Key", b"k")], [(b"authorization", b"Bearer own"), (b"x-api-key", b"k")], []):
        await KeyHeader(app)({"type": "http", "headers": headers}, None, None)
    assert [one.get(b"authorization") for one in seen] == [b"Bearer k", b"Bearer own", None]
    await KeyHeader(app)({"type": "lifespan", "headers": []}, None, None)


# --- llama.cpp


def test_llama_cpp_runs_in_its_own_image_or_in_one_of_ours() -> None:
    own = LlamaCppContainer(Images()).container_plan(
        source(ModelMetadata(), "q/m.gguf"), DeployConfig(concurrent_requests=4), [node()], Tuning()
    )
    pairs = dict(zip(own.container.args, own.container.args[1:], strict=False))
    assert own.container.command == ["/app/llama-server"]
    assert (pairs["--model"], pairs["--alias"], pairs["--parallel"]) == ("/models/q/m.gguf", "a model", "4")
    assert pairs["--api-key-file"] == "/etc/stepway/secrets/api-key"
    assert own.container.loader_image == Images().loader  # its image has no Python
    images = Images(llama_cpp="registry.example/llama:1", llama_cpp_program="xllamacpp")
    ours = LlamaCppContainer(images).container_plan(
        source(ModelMetadata(), "q/m.gguf"), DeployConfig(), [node()], Tuning()
    )
    assert ours.container.command == []
    assert option(ours, "model") == "/models/q/m.gguf"
    assert ours.container.image_of_loader == "registry.example/llama:1"


def test_llama_cpp_weighs_a_worker_as_on_this_machine_and_against_the_largest_node() -> None:
    model, config = source(ModelMetadata(weights_bytes=8 * GIB), "m.gguf"), DeployConfig(concurrent_requests=10)
    made = LlamaCppContainer(Images()).container_plan(model, config, [node()], Tuning())
    local: EnginePlan = LlamaCpp().plan(model, config, cpus=16)
    same = {"replicas", "concurrency", "context_tokens", "memory_bytes", "threads", "apis"}
    assert made.model_dump(include=same) == local.model_dump(include=same)
    with pytest.raises(Unsupported, match=r"needs \d+ MiB of memory, and the largest node has 4096 MiB"):
        LlamaCppContainer(Images()).container_plan(model, config, [node(memory_allocatable=4 * GIB)], Tuning())


def test_llama_cpp_takes_the_longest_request_and_no_other_setting() -> None:
    metadata = ModelMetadata(weights_bytes=GIB, context_length=8192)
    model, config = source(metadata, "m.gguf"), DeployConfig(concurrent_requests=2)

    def plans(tuning: Tuning) -> list[Plan]:
        pods = LlamaCppContainer(Images()).container_plan(model, config, [node()], tuning)
        return [pods, LlamaCpp().plan(model, config, cpus=16, tuning=tuning)]

    for plain, made in zip(plans(Tuning()), plans(Tuning(max_context=8000)), strict=True):
        assert (plain.context_tokens, made.context_tokens) == (2048, 7936)  # it counts in steps of 256
        assert made.memory_bytes > plain.memory_bytes
    pods = plans(Tuning(max_context=256))[0]
    assert isinstance(pods, ContainerPlan)
    assert (
        dict(zip(pods.container.args, pods.container.args[1:], strict=False))["--ctx-size"] == "512"
    )  # of two requests
    for tuning in (Tuning(tensor_parallel=2), Tuning(max_context=512, dtype="auto"), Tuning(max_context=8193)):
        with pytest.raises(SettingUnsupported):
            plans(tuning)
    with pytest.raises(SettingUnsupported, match="The engine llama_cpp has no such setting: dtype, lora"):
        LlamaCpp().plan(model, config, cpus=16, tuning=Tuning(dtype="auto", lora={"a": "b"}))


# --- litellm


def test_a_proxy_to_a_cloud_model_has_no_settings() -> None:
    cloud = CloudModel(name="a model", uri="openai/gpt-4o")
    assert LiteLlm(Images()).container_plan(cloud, DeployConfig(), Tuning(lora={})) is not None
    with pytest.raises(SettingUnsupported, match="The engine litellm has no such setting: max_context"):
        LiteLlm(Images()).container_plan(cloud, DeployConfig(), Tuning(max_context=4096))


def test_litellm_names_variables_and_never_values() -> None:
    model = CloudModel(name="gpt", uri="azure/gpt-4o", parameters=["api_key", "api_base", "api_version"])
    made = LiteLlm(Images()).container_plan(model, DeployConfig(concurrent_requests=300))
    config = yaml.safe_load(made.container.files["config.yaml"])
    assert config["model_list"] == [
        {
            "model_name": "gpt",
            "litellm_params": {
                "model": "azure/gpt-4o",
                "api_base": "os.environ/STEPWAY_CREDENTIAL_API_BASE",
                "api_key": "os.environ/STEPWAY_CREDENTIAL_API_KEY",
                "api_version": "os.environ/STEPWAY_CREDENTIAL_API_VERSION",
            },
        }
    ]
    assert made.secrets == [secret_name(name) for name in ("api_base", "api_key", "api_version")]
    assert made.container.secret_environment["STEPWAY_CREDENTIAL_API_KEY"] == "credential-api-key"
    assert made.container.secret_environment["LITELLM_MASTER_KEY"] == "api-key"
    assert (made.replicas, made.concurrency) == (2, 150)


@pytest.mark.parametrize("parameter", ["model", "mock_response", "api-key", "A", "x" * 41])
def test_litellm_refuses_fields_that_are_no_connection(parameter: str) -> None:
    model = CloudModel(name="gpt", uri="openai/gpt-4o", parameters=[parameter])
    with pytest.raises(Unsupported, match="no parameter of a connection"):
        LiteLlm(Images()).container_plan(model, DeployConfig())

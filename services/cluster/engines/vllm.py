"""vLLM on a cluster: models in the Hugging Face layout on GPUs of one node, or of several nodes where one is too small.

The plan finds the fewest GPUs that hold weights, KV cache and buffers. On several nodes, of the same kind, it is as vLLM's
documentation has it: tensor parallelism within each, a pipeline over them, and Ray between (`vllm_group` starts all that).
Code of the model's repository never runs (`--trust-remote-code` is never given) and nothing is downloaded: the files are
where the loader put them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cluster.engines import vllm_group, vllm_key
from services.cluster.engines.base import (
    ContainerPlan,
    DeployConfig,
    ModelSource,
    SettingUnsupported,
    Unsupported,
    check_context,
    check_tuning,
)
from services.cluster.engines.images import Images
from services.cluster.runtimes.containers import API_KEY, FILES, MODEL, Container, GpuRequest, Probes, Resources
from shared.contracts.clusters import NodeFacts, NodeGpu
from shared.contracts.deployments import Tuning
from shared.contracts.models import ModelFile, ModelMetadata

PORT = 8000
_MAX_NODES = 8
_GROUP = ["python3", f"{FILES}/vllm_group.py", f"--port={PORT}", "--"]
GIB = 1024**3
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_MODALITIES = {"llm", "mllm", "embedding"}
_WEIGHTS = (".safetensors", ".bin", ".pt")
_MAX_CONCURRENCY = 256  # of one worker
_MIN_CONTEXT = 2048
_MEMORY_SHARE = 0.9  # of each GPU
_HEADROOM = 2.0  # requests may be longer than the average
_BUFFERS = 2 * GIB  # of each GPU: activations, graphs, the runtime itself
_UNKNOWN_KV_BYTES = 160 * 1024  # per token
_SHARED_MEMORY = 4 * GIB  # through which the processes of several GPUs speak
_SLOWEST_READ = 100 * 1024**2  # bytes per second in which weights are loaded, at worst
_LEAST_START = 900.0  # graphs are compiled at the first start
_UNKNOWN_GPU = 16 * GIB


@dataclass(frozen=True, slots=True)
class Fit:
    """GPUs that hold a worker: of one node, or as many each of several `nodes` that are like this one."""

    gpu: NodeGpu
    node: NodeFacts
    tensor: int
    pipeline: int
    nodes: int = 1

    @property
    def count(self) -> int:
        return self.tensor * self.pipeline

    @property
    def per_node(self) -> int:
        return self.count // self.nodes


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes of all GPUs of a worker together, but `buffers` of each."""

    weights: int
    kv: int
    heads: int | None
    layers: int | None

    def per_gpu(self, count: int) -> int:
        return math.ceil((self.weights + self.kv) / count) + _BUFFERS


class Vllm:
    name = "vllm"

    def __init__(self, images: Images) -> None:
        self._images = images

    def lacks(self, files: Sequence[ModelFile], metadata: ModelMetadata, nodes: Sequence[NodeFacts]) -> str | None:
        names = {file.path.rpartition("/")[2] for file in files}
        if "config.json" not in names or not any(name.endswith(_WEIGHTS) for name in names):
            return "vLLM runs models in the Hugging Face layout: config.json, and weights as safetensors."
        modality = set(metadata.modality)
        if modality and not modality & _MODALITIES:
            return f"vLLM does not serve {', '.join(sorted(modality))} models here."
        if not any(node.gpus for node in _usable(nodes)):
            return "vLLM needs a GPU, and no node of the cluster has one that is free for pods."
        return None

    def container_plan(
        self, model: ModelSource, config: DeployConfig, nodes: Sequence[NodeFacts], tuning: Tuning
    ) -> ContainerPlan:
        refusal = self.lacks(model.files, model.metadata, nodes)
        if refusal is not None:
            raise Unsupported(refusal)
        check_tuning(self.name, tuning)
        _check_split(model.metadata, nodes, tuning)
        context = _context(model.metadata, config, tuning)
        concurrency, demand, fit = _share(model, config, context, nodes, tuning)
        replicas = math.ceil(config.concurrent_requests / concurrency)
        memory = _host_memory(demand, fit)
        spans = fit.nodes > 1
        embedding = "embedding" in model.metadata.modality and not {"llm", "mllm"} & set(model.metadata.modality)
        return ContainerPlan(
            engine=self.name,
            container=Container(
                image=self._images.vllm,
                command=[*(_GROUP if spans else []), "vllm", "serve", MODEL],
                args=_arguments(model, tuning, fit, context, concurrency),
                environment=_environment(),
                secret_environment={"VLLM_API_KEY": API_KEY},
                files=_files(spans=spans),
                port=PORT,
                pods=fit.nodes,
                probes=Probes(
                    ready_path="/health",
                    start_seconds=max(_LEAST_START, demand.weights / _SLOWEST_READ),
                    interval=10.0,
                    timeout=10.0,
                ),
                resources=Resources(
                    cpu_millis=2000 * fit.per_node,
                    memory_bytes=memory,
                    gpus=GpuRequest(
                        resource=fit.gpu.resource,
                        count=fit.per_node,
                        products=_products(demand, nodes, fit, tuning),
                    ),
                ),
                shared_memory_bytes=_SHARED_MEMORY if fit.count > 1 else GIB,  # Ray's store is in it too
                scratch_bytes=20 * GIB,
                stop_grace=120.0,
            ),
            replicas=replicas,
            concurrency=concurrency,
            context_tokens=context,
            memory_bytes=fit.nodes * memory,
            threads=2 * fit.count,
            apis=["/v1/embeddings"] if embedding else ["/v1/chat/completions", "/v1/completions"],
        )


def _arguments(model: ModelSource, tuning: Tuning, fit: Fit, context: int, concurrency: int) -> list[str]:
    arguments = {
        "served-model-name": model.name,
        "host": "0.0.0.0",  # noqa: S104 (the pod's own addresses)
        "port": str(PORT),
        "dtype": tuning.dtype or "auto",
        "max-model-len": str(context),
        "max-num-seqs": str(concurrency),
        "gpu-memory-utilization": f"{_memory_share(tuning):g}",
        "tensor-parallel-size": str(fit.tensor),
        "pipeline-parallel-size": str(fit.pipeline),
        "middleware": "vllm_key.KeyHeader",
    }
    if fit.nodes > 1:
        arguments["distributed-executor-backend"] = "ray"
    if tuning.quantization is not None:
        arguments["quantization"] = tuning.quantization
    if tuning.tool_parser is not None:
        arguments["tool-call-parser"] = tuning.tool_parser
    made = [f"--{name}={value}" for name, value in arguments.items()]
    if tuning.tool_parser is not None:
        made.append("--enable-auto-tool-choice")
    return made + (_adapters(model, tuning.lora) if tuning.lora else [])


def _files(*, spans: bool) -> dict[str, str]:
    """Programs of ours that run in vLLM's image."""
    paths = [Path(vllm_key.__file__), *([Path(vllm_group.__file__)] if spans else [])]
    return {path.name: path.read_text() for path in paths}


def _environment() -> dict[str, str]:
    cache = "/tmp/cache"  # noqa: S108 (the pod's own)
    return {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CACHE_ROOT": cache,
        "XDG_CACHE_HOME": cache,
        "TRITON_CACHE_DIR": f"{cache}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        "PYTHONPATH": FILES,
        "USER": "stepway",  # torch asks for the user's name, and the image knows no such user
    }


def _adapters(model: ModelSource, adapters: Mapping[str, str]) -> list[str]:
    """They are among the model's own files: what was scanned with it, and comes to the pods with it."""
    present = {file.path for file in model.files}
    needed = 1
    for folder in adapters.values():
        if f"{folder}/adapter_config.json" not in present:
            raise SettingUnsupported(
                f"The model's files have no LoRA adapter {folder} (it would hold adapter_config.json)."
            )
        needed = max(needed, model.lora_ranks.get(folder, 0))
    rank = next((one for one in _LORA_RANKS if one >= needed), None)
    if rank is None:
        raise SettingUnsupported(f"vLLM serves LoRA adapters of rank {_LORA_RANKS[-1]} at most, and one has {needed}.")
    return [
        "--enable-lora", f"--max-loras={len(adapters)}", f"--max-lora-rank={rank}", "--lora-modules",
        *(f"{name}={MODEL}/{folder}" for name, folder in sorted(adapters.items())),
    ]  # fmt: skip


def _check_split(metadata: ModelMetadata, nodes: Sequence[NodeFacts], tuning: Tuning) -> None:
    """Raises Unsupported for numbers of GPUs that the model or no node has."""
    tensor, pipeline = tuning.tensor_parallel, tuning.pipeline_parallel
    if tensor is not None and metadata.attention_heads and metadata.attention_heads % tensor:
        raise SettingUnsupported(
            f"tensor_parallel {tensor} does not divide the model's {metadata.attention_heads} attention heads."
        )
    if pipeline is not None and metadata.layers and pipeline > metadata.layers:
        raise SettingUnsupported(f"pipeline_parallel {pipeline} is more than the model's {metadata.layers} layers.")
    most = max(gpu.count for node in _usable(nodes) for gpu in node.gpus)
    if tensor is not None and tensor > most:
        raise Unsupported(
            f"tensor_parallel asks for {tensor} GPUs of one node, and none has more than {most}.",
            "insufficient_capacity",
        )


def _memory_share(tuning: Tuning) -> float:
    return _MEMORY_SHARE if tuning.gpu_memory_share is None else tuning.gpu_memory_share


def _context(metadata: ModelMetadata, config: DeployConfig, tuning: Tuning) -> int:
    if tuning.max_context is not None:
        check_context(metadata, tuning.max_context)
        return tuning.max_context
    wanted = max(_MIN_CONTEXT, math.ceil(_HEADROOM * (config.avg_context_length + config.avg_sequence_length)))
    return min(wanted, metadata.context_length or wanted)


def _share(
    model: ModelSource, config: DeployConfig, context: int, nodes: Sequence[NodeFacts], tuning: Tuning
) -> tuple[int, Demand, Fit]:
    """The requests of one worker, as many as its GPUs have cache for; where that is fewer, there are more workers.

    A worker spans nodes only where no number of requests is small enough for one.
    """
    for place in (_on_one_node, _on_several_nodes):
        replicas = math.ceil(config.concurrent_requests / _MAX_CONCURRENCY)
        while True:
            concurrency = math.ceil(config.concurrent_requests / replicas)
            demand = _demand(model, config, context, concurrency, tuning)
            fit = place(demand, nodes, tuning)
            if fit is not None:
                return concurrency, demand, fit
            if concurrency == 1:
                break
            replicas *= 2
    raise _too_large(demand, nodes, tuning)


def _demand(model: ModelSource, config: DeployConfig, context: int, concurrency: int, tuning: Tuning) -> Demand:
    metadata = model.metadata
    wide = 2 if tuning.dtype == "float32" else 1  # files and caches are of 16 bits, or are taken to be
    files = sum(file.size for file in model.files if file.path.endswith(_WEIGHTS))
    tokens = max(context, concurrency * min(context, config.avg_context_length + config.avg_sequence_length))
    return Demand(
        weights=wide * max(metadata.weights_bytes or 0, files),
        kv=wide * tokens * (metadata.kv_bytes_per_token or _UNKNOWN_KV_BYTES),
        heads=metadata.attention_heads,
        layers=metadata.layers,
    )


def _on_one_node(demand: Demand, nodes: Sequence[NodeFacts], tuning: Tuning) -> Fit | None:
    """The fewest GPUs of one node that hold a worker; of as many, the smaller ones."""
    found = [fit for node in _usable(nodes) for gpu in node.gpus if (fit := _on(demand, node, gpu, tuning)) is not None]
    return min(found, key=lambda fit: (fit.count, _memory(fit.gpu), fit.node.name), default=None)


def _on_several_nodes(demand: Demand, nodes: Sequence[NodeFacts], tuning: Tuning) -> Fit | None:
    """The fewest nodes with GPUs of one kind that hold a worker, then the fewest GPUs of each."""
    kinds: dict[tuple[str, str | None, int], list[tuple[NodeFacts, NodeGpu]]] = {}
    for node in _usable(nodes):
        for gpu in node.gpus:
            kinds.setdefault((gpu.resource, gpu.product, _memory(gpu)), []).append((node, gpu))
    found = []
    for (_, _, memory), members in kinds.items():
        room = int(memory * _memory_share(tuning))
        for tensor, pipeline in _splits(demand, _MAX_NODES * max(gpu.count for _, gpu in members), tuning):
            there = [one for one in members if one[1].count >= tensor]
            if 2 <= pipeline <= min(len(there), _MAX_NODES) and demand.per_gpu(tensor * pipeline) <= room:
                node, gpu = min(there, key=lambda one: one[0].name)
                found.append(Fit(gpu, node, tensor, pipeline, pipeline))
                break
    return min(found, key=lambda fit: (fit.nodes, fit.tensor, _memory(fit.gpu), fit.node.name), default=None)


def _too_large(demand: Demand, nodes: Sequence[NodeFacts], tuning: Tuning) -> Unsupported:
    known = [gpu for node in _usable(nodes) for gpu in node.gpus]
    largest = max(known, key=lambda gpu: gpu.count * _memory(gpu))
    alike = sum(
        (one.resource, one.product, one.memory) == (largest.resource, largest.product, largest.memory) for one in known
    )
    together = f" Together, the {alike} nodes of that kind do not hold it either." if alike > 1 else ""
    splits = {"tensor_parallel": tuning.tensor_parallel, "pipeline_parallel": tuning.pipeline_parallel}
    asked = [f"{name} {number}" for name, number in splits.items() if number is not None]
    if asked:
        together += f" It is to be split by {' and '.join(asked)}."
    needed = math.ceil((demand.weights + demand.kv) / GIB)
    return Unsupported(
        f"The model needs {needed} GiB of GPU memory for weights and cache, and the largest node has "
        f"{largest.count} × {_memory(largest) // GIB} GiB.{together}"
    )


def _on(demand: Demand, node: NodeFacts, gpu: NodeGpu, tuning: Tuning) -> Fit | None:
    room = int(_memory(gpu) * _memory_share(tuning))
    for tensor, pipeline in _splits(demand, gpu.count, tuning):
        if demand.per_gpu(tensor * pipeline) <= room:
            return Fit(gpu, node, tensor, pipeline)
    return None


def _splits(demand: Demand, gpus: int, tuning: Tuning) -> list[tuple[int, int]]:
    """(tensor, pipeline): a pipeline only where tensor parallelism does not do, then the fewest GPUs. Heads are split evenly."""
    tensors = [tuning.tensor_parallel] if tuning.tensor_parallel else [2**power for power in range(7)]
    pipelines = [tuning.pipeline_parallel] if tuning.pipeline_parallel else range(1, 9)
    found = [
        (tensor, pipeline)
        for tensor in tensors
        for pipeline in pipelines
        if tensor * pipeline <= gpus
        and (demand.heads is None or demand.heads % tensor == 0)
        and (demand.layers is None or pipeline <= demand.layers)
    ]
    return sorted(found, key=lambda split: (split[1], split[0]))


def _products(demand: Demand, nodes: Sequence[NodeFacts], fit: Fit, tuning: Tuning) -> list[str]:
    """Every product on which the very same plan fits; none where nodes do not say what they have. Nodes that work
    together are of one kind.
    """
    if fit.nodes > 1:
        return [fit.gpu.product] if fit.gpu.product is not None else []
    room = demand.per_gpu(fit.count)
    known = [gpu for node in _usable(nodes) for gpu in node.gpus if gpu.resource == fit.gpu.resource]
    if any(gpu.product is None for gpu in known):
        return []
    good = {gpu.product for gpu in known if int(_memory(gpu) * _memory_share(tuning)) >= room}
    return sorted(product for product in good if product is not None)


def _host_memory(demand: Demand, fit: Fit) -> int:
    """Of each node: a process per GPU, and weights on their way."""
    return 4 * GIB * (fit.per_node + 1) + min(demand.weights // fit.count, 32 * GIB) + _SHARED_MEMORY


def _memory(gpu: NodeGpu) -> int:
    return gpu.memory or _UNKNOWN_GPU


def _usable(nodes: Sequence[NodeFacts]) -> list[NodeFacts]:
    return [node for node in nodes if node.ready and node.schedulable]

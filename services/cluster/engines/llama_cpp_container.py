"""llama.cpp on a cluster: GGUF models on CPUs, in the llama.cpp server image or one that starts `llama_cpp_server`.

What a worker needs is weighed as for this machine (`llama_cpp`); what it may have is what the nodes have.
"""

from collections.abc import Sequence

from services.cluster.engines.base import ContainerPlan, DeployConfig, ModelSource, Unsupported
from services.cluster.engines.images import Images
from services.cluster.engines.llama_cpp import LlamaCpp, Shape, shape_of
from services.cluster.runtimes.containers import API_KEY, MODEL, SECRETS, Container, Probes, Resources
from shared.contracts.clusters import NodeFacts
from shared.contracts.deployments import Tuning
from shared.contracts.models import ModelFile, ModelMetadata

PORT = 8080
_KEY_FILE = f"{SECRETS}/{API_KEY}"
_SLOWEST_READ = 50 * 1024**2  # bytes per second in which weights are loaded, at worst
_LEAST_START = 300.0


class LlamaCppContainer:
    name = "llama_cpp"

    def __init__(self, images: Images) -> None:
        self._images = images

    def lacks(self, files: Sequence[ModelFile], metadata: ModelMetadata, nodes: Sequence[NodeFacts]) -> str | None:
        reason = LlamaCpp().supports(files, metadata)
        if reason is None and not _usable(nodes):
            return "The cluster has no node that is ready for pods."
        return reason

    def container_plan(
        self, model: ModelSource, config: DeployConfig, nodes: Sequence[NodeFacts], tuning: Tuning
    ) -> ContainerPlan:
        usable = _usable(nodes)
        if not usable:
            raise Unsupported("The cluster has no node that is ready for pods.")
        cpus = max(node.cpu_millis_allocatable for node in usable) / 1000
        shape = shape_of(model, config, tuning, cpus=cpus)
        largest = max(node.memory_allocatable for node in usable)
        if shape.memory_bytes > largest:
            raise Unsupported(
                f"A worker needs {shape.memory_bytes >> 20} MiB of memory, and the largest node has {largest >> 20} MiB.",
                "insufficient_capacity",
            )
        server = self._images.llama_cpp_program == "server"
        return ContainerPlan(
            engine=self.name,
            container=Container(
                image=self._images.llama_cpp,
                command=["/app/llama-server"] if server else [],
                args=_server_arguments(shape, model.name) if server else _program_arguments(shape, model.name),
                secret_files=[API_KEY],
                port=PORT,
                probes=Probes(
                    ready_path="/health", start_seconds=max(_LEAST_START, shape.weights_bytes / _SLOWEST_READ)
                ),
                resources=Resources(cpu_millis=_cpu_request(shape.threads, cpus), memory_bytes=shape.memory_bytes),
                loader_image=self._images.loader if server else None,
            ),
            replicas=shape.replicas,
            concurrency=shape.concurrency,
            context_tokens=shape.context,
            memory_bytes=shape.memory_bytes,
            threads=shape.threads,
            apis=shape.apis,
        )


def _usable(nodes: Sequence[NodeFacts]) -> list[NodeFacts]:
    return [node for node in nodes if node.ready and node.schedulable and node.os in (None, "linux")]


def _cpu_request(threads: int, cpus: float) -> int:
    """In thousandths: a CPU per thread, less what a node of this size keeps for its own pods."""
    return max(100, min(threads * 1000, int(cpus * 1000 * 0.8)) // 2)


def _program_arguments(shape: Shape, name: str) -> list[str]:
    arguments = {
        "model": f"{MODEL}/{shape.main.path}",
        "name": name,
        "host": "0.0.0.0",  # noqa: S104 (the pod's own addresses)
        "port": str(PORT),
        "context": str(shape.context * shape.concurrency),
        "parallel": str(shape.concurrency),
        "batch": str(shape.batch),
        "threads": str(shape.threads),
        "api-key-file": _KEY_FILE,
    }
    if shape.projector is not None:
        arguments["projector"] = f"{MODEL}/{shape.projector.path}"
    return [f"--{key}={value}" for key, value in arguments.items()] + (["--embedding"] if shape.embedding else [])


def _server_arguments(shape: Shape, name: str) -> list[str]:
    """Of llama.cpp's own server. Its values are separate arguments: it knows no `--name=value`."""
    arguments = {
        "--model": f"{MODEL}/{shape.main.path}",
        "--alias": name,
        "--host": "0.0.0.0",  # noqa: S104 (as above)
        "--port": str(PORT),
        "--ctx-size": str(shape.context * shape.concurrency),
        "--parallel": str(shape.concurrency),
        "--batch-size": str(max(shape.batch, 2048)),
        "--ubatch-size": str(shape.batch),
        "--threads": str(shape.threads),
        "--threads-http": str(4 * shape.concurrency + 8),
        "--api-key-file": _KEY_FILE,
        "--cache-ram": "0",
    }
    if shape.projector is not None:
        arguments["--mmproj"] = f"{MODEL}/{shape.projector.path}"
    flags = ["--metrics", "--no-slots", "--no-webui", *(["--embeddings"] if shape.embedding else [])]
    return [part for pair in arguments.items() for part in pair] + flags

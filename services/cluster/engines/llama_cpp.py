"""llama.cpp: runs GGUF models on CPUs, as `llama_cpp_server` processes."""

import asyncio
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cluster.engines import llama_cpp_server
from services.cluster.engines.base import (
    DeployConfig,
    EnginePlan,
    ModelSource,
    Unsupported,
    check_context,
    check_tuning,
)
from services.cluster.runtimes.base import Health, Process
from shared.contracts.deployments import UNTUNED, Tuning
from shared.contracts.models import ModelFile, ModelMetadata

_MODALITIES = {"llm", "mllm", "embedding"}
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_MAX_CONCURRENCY = 8  # of one worker; more gains nothing on CPUs
_MAX_THREADS = 16
_MIN_CONTEXT = 2048  # tokens per request, where the model allows
_CONTEXT_STEP = 256  # llama.cpp rounds a request's context up to this
_HEADROOM = 2.0  # requests may be longer than the average
_BATCH = 512  # tokens of a prompt that are computed at once
_BASE_MEMORY = 160 * 1024**2  # interpreter, library, threads, HTTP
_UNKNOWN_KV_BYTES = 128 * 1024  # per token: a 7B model with grouped attention
_MARGIN = 1.15
_LIBRARY = re.compile(r"(lib[\w+.-]+\.(?:so|dylib)[\w.]*)")
_HINTS = {"libgomp.so.1": " (Debian and Ubuntu: libgomp1; Fedora and Alpine: libgomp)"}


class LlamaCpp:
    name = "llama_cpp"

    async def preflight(self, environment: Mapping[str, str] | None = None) -> str | None:
        process = await asyncio.create_subprocess_exec(
            *_program(), "--check", env=dict(environment or {}),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(30):
                _, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return "llama.cpp could not be loaded within 30 seconds on this machine."
        return None if process.returncode == 0 else _lacking(errors.decode("utf-8", "replace"), process.returncode or 0)

    def supports(self, files: Sequence[ModelFile], metadata: ModelMetadata) -> str | None:
        try:
            _choose(files)
            _kind(metadata, files)
        except Unsupported as refusal:
            return refusal.message
        return None

    def plan(self, model: ModelSource, config: DeployConfig, *, cpus: float, tuning: Tuning = UNTUNED) -> EnginePlan:
        shape = shape_of(model, config, tuning, cpus=cpus)
        arguments = {
            "model": str(model.directory / shape.main.path),
            "name": model.name,
            "host": "127.0.0.1",
            "port": "{port}",
            "context": str(shape.context * shape.concurrency),
            "parallel": str(shape.concurrency),
            "batch": str(shape.batch),
            "threads": str(shape.threads),
            "api-key-file": "{api_key_file}",
        }
        if shape.projector is not None:
            arguments["projector"] = str(model.directory / shape.projector.path)
        argv = [*_program(), *(f"--{name}={value}" for name, value in arguments.items())]
        if shape.embedding:
            argv.append("--embedding")
        return EnginePlan(
            engine=self.name,
            process=Process(argv=argv, health=Health(path="/health"), stop_grace=10.0),
            replicas=shape.replicas,
            concurrency=shape.concurrency,
            context_tokens=shape.context,
            memory_bytes=shape.memory_bytes,
            threads=shape.threads,
            apis=shape.apis,
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """What a worker of a model must be, wherever it runs."""

    main: ModelFile
    projector: ModelFile | None
    embedding: bool
    replicas: int
    concurrency: int
    context: int  # tokens of one request
    batch: int  # tokens of a prompt that are computed at once
    threads: int
    memory_bytes: int
    weights_bytes: int

    @property
    def apis(self) -> list[str]:
        return ["/v1/embeddings"] if self.embedding else ["/v1/chat/completions", "/v1/completions"]


def shape_of(model: ModelSource, config: DeployConfig, tuning: Tuning, *, cpus: float) -> Shape:
    """Raises Unsupported."""
    check_tuning(LlamaCpp.name, tuning)
    main = _choose(model.files)
    kind = _kind(model.metadata, model.files)
    replicas = math.ceil(config.concurrent_requests / _MAX_CONCURRENCY)
    concurrency = math.ceil(config.concurrent_requests / replicas)
    context = _context(model.metadata, config, tuning)
    batch = context if kind == "embedding" else _BATCH
    return Shape(
        main=main,
        projector=_projector(model.files) if kind == "mllm" else None,
        embedding=kind == "embedding",
        replicas=replicas,
        concurrency=concurrency,
        context=context,
        batch=batch,
        threads=max(1, min(_MAX_THREADS, int(cpus / max(2, replicas)))),
        memory_bytes=memory_estimate(model.files, model.metadata, context * concurrency, batch),
        weights_bytes=sum(file.size for file in model.files if file.path.lower().endswith(".gguf")),
    )


def memory_estimate(files: Sequence[ModelFile], metadata: ModelMetadata, context: int, batch: int) -> int:
    """Bytes that one worker needs at most: weights, KV cache for all requests' context, compute buffers, the process."""
    weights = max(metadata.weights_bytes or 0, sum(file.size for file in files if file.path.lower().endswith(".gguf")))
    kv = context * (metadata.kv_bytes_per_token or _kv_guess(metadata))
    vocabulary = metadata.vocabulary_size or 128_000
    buffers = batch * 4 * (vocabulary + 16 * (metadata.hidden_size or 4096))
    return int((weights + kv + buffers) * _MARGIN) + _BASE_MEMORY


def _kv_guess(metadata: ModelMetadata) -> int:
    """Keys and values of 16 bits for each layer, as if every attention head had its own."""
    if not metadata.layers or not metadata.hidden_size:
        return _UNKNOWN_KV_BYTES
    share = metadata.kv_heads / metadata.attention_heads if metadata.kv_heads and metadata.attention_heads else 1.0
    return int(metadata.layers * metadata.hidden_size * share * 2 * 2)


def _context(metadata: ModelMetadata, config: DeployConfig, tuning: Tuning) -> int:
    if tuning.max_context is not None:
        check_context(metadata, tuning.max_context)
        return tuning.max_context // _CONTEXT_STEP * _CONTEXT_STEP  # never above it
    wanted = max(_MIN_CONTEXT, int(_HEADROOM * (config.avg_context_length + config.avg_sequence_length)))
    if metadata.context_length:
        wanted = min(wanted, metadata.context_length)
    return math.ceil(wanted / _CONTEXT_STEP) * _CONTEXT_STEP


def _kind(metadata: ModelMetadata, files: Sequence[ModelFile]) -> str:
    """llm, mllm or embedding."""
    modality = set(metadata.modality)
    if modality and not modality & _MODALITIES:
        raise Unsupported(f"llama.cpp does not serve {', '.join(sorted(modality))} models.")
    if "embedding" in modality and not modality & {"llm", "mllm"}:
        return "embedding"
    return "mllm" if "mllm" in modality and _projector(files) is not None else "llm"


def _choose(files: Sequence[ModelFile]) -> ModelFile:
    """The file to load: the only GGUF file, or the first of its parts."""
    if any(part in ("", ".", "..") for file in files for part in file.path.split("/")):
        raise Unsupported("A file of the model lies outside the model's folder.")
    found = [file for file in files if file.path.lower().endswith(".gguf") and not _is_projector(file)]
    if not found:
        raise Unsupported("llama.cpp runs models in the GGUF format, and this model has no .gguf file.")
    parts = [(_SHARD.search(file.path), file) for file in found]
    if any(match is None for match, _ in parts):
        if len(found) > 1:
            raise Unsupported(f"The model has {len(found)} GGUF files ({_names(found)}); keep the one that shall run.")
        return found[0]
    counts = {(file.path[: match.start()], int(match.group(2))) for match, file in parts if match}
    numbers = sorted(int(match.group(1)) for match, _ in parts if match)
    if len(counts) != 1 or numbers != list(range(1, next(iter(counts))[1] + 1)):
        raise Unsupported(f"The GGUF files are not all the parts of one model: {_names(found)}.")
    return min(found, key=lambda file: file.path)


def _projector(files: Sequence[ModelFile]) -> ModelFile | None:
    return next((file for file in files if _is_projector(file)), None)


def _is_projector(file: ModelFile) -> bool:
    name = file.path.rpartition("/")[2].lower()
    return name.endswith(".gguf") and "mmproj" in name


def _names(files: Sequence[ModelFile]) -> str:
    return ", ".join(file.path for file in files[:4]) + (", …" if len(files) > 4 else "")


def _program() -> list[str]:
    return [sys.executable, "-I", str(Path(llama_cpp_server.__file__).resolve())]


def _lacking(errors: str, code: int) -> str:
    last = errors.strip().rpartition("\n")[2]
    library = _LIBRARY.search(last)
    if library is not None and "xllamacpp" not in library.group(1):
        name = library.group(1)
        return f"llama.cpp needs the system library {name}{_HINTS.get(name, '')}: install it, then try again."
    if code < 0:
        return f"llama.cpp does not run on this machine's processor (it ended with signal {-code})."
    return f"llama.cpp cannot be loaded on this machine: {last[:300] or f'exit code {code}'}."

"""Endpoints as the services pass them to each other: what is to be served where, and what came of it."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field, StrictInt, model_validator

from shared.contracts.models import ModelMetadata


class ServedConfig(BaseModel):
    """A deploy configuration with the template's defaults filled in."""

    concurrent_requests: int = Field(gt=0)
    avg_sequence_length: int = Field(gt=0)
    avg_context_length: int = Field(gt=0)
    per_session_tokens_per_sec: tuple[float, float] | None = None
    ttft: tuple[float, float] | None = None
    e2e_latency: tuple[float, float] | None = None


Dtype = Literal["auto", "float16", "bfloat16", "float32"]
# Those that the default version of vLLM knows and that its own image can do.
Quantization = Literal[
    "auto-round", "awq", "awq_marlin", "bitsandbytes", "compressed-tensors", "experts_int8", "fbgemm_fp8", "fp8", "gptq",
    "gptq_marlin", "hqq", "modelopt", "modelopt_fp4", "moe_wna16", "mxfp4", "ptpc_fp8", "quark", "torchao",
]  # fmt: skip
ToolParser = Literal[
    "deepseek_v3", "deepseek_v31", "glm45", "granite", "granite-20b-fc", "hermes", "hunyuan_a13b", "internlm", "jamba",
    "kimi_k2", "llama3_json", "llama4_json", "llama4_pythonic", "minimax", "mistral", "openai", "phi4_mini_json",
    "pythonic", "qwen3_coder", "qwen3_xml", "seed_oss", "step3", "xlam",
]  # fmt: skip
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
AdapterName = Annotated[str, Field(pattern=f"^{_NAME}$")]
AdapterFolder = Annotated[str, Field(pattern=f"^{_NAME}(/{_NAME}){{0,7}}$")]  # no part is hidden, or leads upwards
_Gpus = Annotated[StrictInt, Field(ge=1, le=64)]


class Tuning(BaseModel):
    """Settings of the engine. What is absent, the engine decides; what an engine cannot follow, it refuses.

    They become arguments of a program: each is a number, one of the words that the engine knows, or of a shape that can
    be nothing but what it is meant to be.
    """

    model_config = {"extra": "forbid", "frozen": True}

    max_context: Annotated[StrictInt, Field(ge=256, le=10_000_000)] | None = Field(
        None, title="Longest request, tokens", description="Prompt and answer together."
    )
    dtype: Dtype | None = Field(None, title="Type of the weights")
    quantization: Quantization | None = Field(None, title="Quantization")
    gpu_memory_share: Annotated[float, Field(ge=0.1, le=0.98, allow_inf_nan=False, strict=True)] | None = Field(
        None, title="Share of each GPU's memory"
    )
    tensor_parallel: _Gpus | None = Field(None, title="GPUs that share each layer")
    pipeline_parallel: _Gpus | None = Field(None, title="Stages that share the layers")
    tool_parser: ToolParser | None = Field(None, title="How the model writes tool calls")
    lora: Annotated[dict[AdapterName, AdapterFolder], Field(max_length=16)] | None = Field(
        None,
        title="LoRA adapters",
        description="By the name by which clients ask for one: its folder among the model's files.",
    )

    @property
    def given(self) -> list[str]:
        return [name for name, value in self if value not in (None, {})]

    def kept(self) -> dict[str, Any]:
        """In JSON form, without what is not given."""
        return self.model_dump(mode="json", include=set(self.given))


UNTUNED = Tuning()
# Which settings each engine follows. It is known here so that requests need not ask a cluster to be refused.
FOLLOWED: dict[str, frozenset[str]] = {
    "llama_cpp": frozenset({"max_context"}),
    "vllm": frozenset(Tuning.model_fields),
    "litellm": frozenset(),
}


def unfollowed(engine: str, tuning: Tuning) -> str | None:
    """Which settings the engine cannot follow, as a sentence; None if there are none."""
    wrong = [name for name in tuning.given if name not in FOLLOWED[engine]]
    return f"The engine {engine} has no such setting: {', '.join(wrong)}." if wrong else None


class Autoscale(BaseModel):
    """The cluster itself keeps between `minimum` and `maximum` workers by their CPU use, in percent of the request."""

    minimum: int = Field(ge=1, le=256)
    maximum: int = Field(ge=1, le=256)
    cpu_percent: int = Field(70, ge=1, le=100)

    @model_validator(mode="after")
    def _ordered(self) -> "Autoscale":
        if self.minimum > self.maximum:
            raise ValueError("minimum is above maximum")
        return self


class DeploySpec(BaseModel):
    """The input of a deploy. The model's bytes, the cluster's access and all keys go by reference."""

    endpoint_id: UUID
    project_id: UUID
    name: str  # by which clients ask for the model
    model_id: UUID
    digest: str | None = None  # of the files that were scanned; None: a cloud model
    uri: str | None = None  # of a cloud model
    metadata: ModelMetadata = Field(default_factory=ModelMetadata)
    cluster_id: UUID
    credential_id: UUID | None = None
    config: ServedConfig
    tuning: Tuning = UNTUNED
    autoscale: Autoscale | None = None
    generation: int


class Served(BaseModel):
    """What an endpoint serves: what it was made from, the plan that came of it, and how many workers there are."""

    spec: DeploySpec
    plan: dict[str, Any]
    replicas: int


class UpdateSpec(DeploySpec):
    """The input of an update: what the endpoint shall serve, and what it goes back to when that fails.

    `replicas` None: as the plan says.
    """

    replicas: int | None = Field(None, ge=1, le=256)
    before: Served


class Deployment(BaseModel):
    """What a deploy or an update made: workers that are ready, and how many requests each serves at a time.

    `plan` is the cluster service's own: from it the same workers are made again.
    """

    endpoint_id: UUID
    engine: str
    replicas: int
    concurrency: int  # of one worker
    context_tokens: int
    memory_bytes: int  # of one worker
    generation: int
    apis: list[str] = Field(default_factory=list)
    autoscale: Autoscale | None = None
    plan: dict[str, Any] = Field(default_factory=dict)


class ScaleSpec(BaseModel):
    """The input of adding and of removing workers: from `before` to `after` of them."""

    endpoint_id: UUID
    project_id: UUID
    cluster_id: UUID
    name: str
    before: int = Field(ge=0)
    after: int = Field(ge=0)
    concurrency: int  # of one worker
    memory_bytes: int  # of one worker
    generation: int
    apis: list[str] = Field(default_factory=list)


class ScaleResult(BaseModel):
    endpoint_id: UUID
    replicas: int
    generation: int


class RemoveSpec(BaseModel):
    """The input of a delete: everything that is ours of one endpoint."""

    endpoint_id: UUID
    cluster_id: UUID
    generation: int


class ExpectedEndpoint(BaseModel):
    """What a cluster should run for one endpoint. Without a `spec` it is to be left as it is: a job works on it, or failed.

    `plan` is what the last job made of it, of the cluster service's own; empty where none has kept it.
    """

    endpoint_id: UUID
    replicas: int = 0
    spec: DeploySpec | None = None
    plan: dict[str, Any] = Field(default_factory=dict)


class ScanSpec(BaseModel):
    """The input of a scan: the files by their manifest's digest."""

    model_id: UUID
    digest: str
    scan_id: UUID


class ScanSummary(BaseModel):
    """What a scan's job keeps; the whole report is an object, by its key."""

    scan_id: UUID
    status: str
    total_issues: int
    by_severity: dict[str, int]
    files_scanned: int
    files_skipped: int
    report: str  # key in the object store


class CloudModelSpec(BaseModel):
    model_id: UUID
    uri: str


class CloudModelAdded(BaseModel):
    model_id: UUID

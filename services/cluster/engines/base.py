"""The engine interface: from a model and a deploy configuration to what a runtime shall run.

One module per engine implements it; `registry` lists them; jobs hand the plan's process to a runtime (`runtimes.base`).
Sizes are in bytes.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, Field

from services.cluster.runtimes.base import Process
from services.cluster.runtimes.containers import Container
from shared.contracts.clusters import NodeFacts
from shared.contracts.deployments import UNTUNED, ServedConfig, Tuning, unfollowed
from shared.contracts.models import ModelFile, ModelMetadata
from shared.jobs.outcomes import Permanent


class Unsupported(Permanent):
    """The engine cannot run this model; the message says what it is missing."""

    def __init__(self, message: str, code: str = "engine_unsupported") -> None:
        super().__init__(code, message)


class SettingUnsupported(Unsupported):
    """The engine cannot follow a setting, there or for this model; the message names it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "tuning_unsupported")


def check_tuning(engine: str, tuning: Tuning) -> None:
    """Raises SettingUnsupported for a setting that the engine does not know."""
    refusal = unfollowed(engine, tuning)
    if refusal is not None:
        raise SettingUnsupported(refusal)


def check_context(metadata: ModelMetadata, wanted: int) -> None:
    """Raises SettingUnsupported for requests that are longer than the model can take."""
    if metadata.context_length and wanted > metadata.context_length:
        raise SettingUnsupported(
            f"max_context asks for requests of {wanted} tokens, and the model takes {metadata.context_length}."
        )


class DeployConfig(BaseModel):
    """What is expected of an endpoint. Lengths are averages in tokens: of the prompt (context) and of the answer (sequence)."""

    concurrent_requests: int = Field(1, gt=0)
    avg_sequence_length: int = Field(512, gt=0)
    avg_context_length: int = Field(512, gt=0)

    @classmethod
    def of(cls, config: ServedConfig) -> "DeployConfig":
        return cls.model_validate(config.model_dump(include=set(cls.model_fields)))


class ModelSource(BaseModel):
    """A model that lies in `directory`, under the name by which clients ask for it. `lora_ranks` are those of its
    adapters, by folder.
    """

    name: str = Field(min_length=1, max_length=200)
    directory: Path
    files: list[ModelFile]
    metadata: ModelMetadata
    lora_ranks: dict[str, int] = Field(default_factory=dict)


class CloudModel(BaseModel):
    """A model that somebody else serves. `parameters` are the LiteLLM parameters that the credential gives, by name."""

    name: str = Field(min_length=1, max_length=200)
    uri: str = Field(pattern=r"^[a-z0-9_]+/[!-~]{1,250}$")
    metadata: ModelMetadata = Field(default_factory=ModelMetadata)
    parameters: list[str] = Field(default_factory=list)


class Plan(BaseModel):
    """How many workers are needed and what each takes. All workers of an endpoint are alike."""

    engine: str
    replicas: int  # for the configuration's concurrent requests
    concurrency: int  # requests that one worker serves at the same time
    context_tokens: int  # that one request may use, prompt and answer together
    memory_bytes: int  # of one worker, at most
    threads: int  # of one worker
    apis: list[str]  # paths of the OpenAI API that it serves

    @property
    def ready_seconds(self) -> float:
        """How long a worker may take, at the very most, from being asked for to being ready."""
        return 900.0

    def workers_needed(self, concurrent_requests: int) -> int:
        return math.ceil(concurrent_requests / self.concurrency)


class EnginePlan(Plan):
    """A worker as a process of this machine."""

    process: Process


class ContainerPlan(Plan):
    """A worker as a pod. `secrets` are the names that its workload must bring values for, beside the key for workers."""

    container: Container
    secrets: list[str] = Field(default_factory=list)


class ContainerEngine(Protocol):
    """An engine that runs as pods on a cluster."""

    @property
    def name(self) -> str: ...

    def lacks(self, files: Sequence[ModelFile], metadata: ModelMetadata, nodes: Sequence[NodeFacts]) -> str | None:
        """Why such a model cannot run on such nodes, as one sentence; None if it can."""

    def container_plan(
        self, model: ModelSource, config: DeployConfig, nodes: Sequence[NodeFacts], tuning: Tuning
    ) -> ContainerPlan:
        """A plan for pods that follows `tuning`; the model's files are below `containers.MODEL`. Raises Unsupported."""


class Engine(Protocol):
    @property
    def name(self) -> str: ...

    async def preflight(self) -> str | None:
        """What this machine lacks to run the engine, as one sentence for a person; None if nothing."""

    def supports(self, files: Sequence[ModelFile], metadata: ModelMetadata) -> str | None:
        """Why the engine cannot run such a model, as one sentence; None if it can."""

    def plan(self, model: ModelSource, config: DeployConfig, *, cpus: float, tuning: Tuning = UNTUNED) -> EnginePlan:
        """A plan for local processes on a machine with so many CPUs, which follows `tuning`. Raises Unsupported.

        The endpoint's workers, and at least one more, get threads that have a CPU each: threads of two servers that share
        CPUs wait for each other, and make both many times slower.
        """

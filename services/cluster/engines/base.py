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
from shared.contracts.models import ModelFile, ModelMetadata
from shared.jobs.outcomes import Permanent


class Unsupported(Permanent):
    """The engine cannot run this model; the message says what it is missing."""

    def __init__(self, message: str) -> None:
        super().__init__("engine_unsupported", message)


class DeployConfig(BaseModel):
    """What is expected of an endpoint. Lengths are averages in tokens: of the prompt (context) and of the answer (sequence)."""

    concurrent_requests: int = Field(1, gt=0)
    avg_sequence_length: int = Field(512, gt=0)
    avg_context_length: int = Field(512, gt=0)


class ModelSource(BaseModel):
    """A model that lies in `directory`, under the name by which clients ask for it."""

    name: str = Field(min_length=1, max_length=200)
    directory: Path
    files: list[ModelFile]
    metadata: ModelMetadata


class EnginePlan(BaseModel):
    """How one worker is made, and how many are needed. All workers of an endpoint are alike."""

    engine: str
    process: Process
    replicas: int  # for the configuration's concurrent requests
    concurrency: int  # requests that one worker serves at the same time
    context_tokens: int  # that one request may use, prompt and answer together
    memory_bytes: int  # of one worker, at most
    threads: int  # of one worker
    apis: list[str]  # paths of the OpenAI API that it serves

    def workers_needed(self, concurrent_requests: int) -> int:
        return math.ceil(concurrent_requests / self.concurrency)


class Engine(Protocol):
    @property
    def name(self) -> str: ...

    async def preflight(self) -> str | None:
        """What this machine lacks to run the engine, as one sentence for a person; None if nothing."""

    def supports(self, files: Sequence[ModelFile], metadata: ModelMetadata) -> str | None:
        """Why the engine cannot run such a model, as one sentence; None if it can."""

    def plan(self, model: ModelSource, config: DeployConfig, *, cpus: float) -> EnginePlan:
        """A plan for local processes on a machine with so many CPUs. Raises Unsupported.

        The endpoint's workers, and at least one more, get threads that have a CPU each: threads of two servers that share
        CPUs wait for each other, and make both many times slower.
        """

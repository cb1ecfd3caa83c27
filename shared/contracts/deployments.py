"""Endpoints as the services pass them to each other: what is to be served where, and what came of it."""

from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from shared.contracts.models import ModelMetadata


class ServedConfig(BaseModel):
    """A deploy configuration with the template's defaults filled in."""

    concurrent_requests: int = Field(gt=0)
    avg_sequence_length: int = Field(gt=0)
    avg_context_length: int = Field(gt=0)
    per_session_tokens_per_sec: tuple[float, float] | None = None
    ttft: tuple[float, float] | None = None
    e2e_latency: tuple[float, float] | None = None


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
    generation: int


class Deployment(BaseModel):
    """What a deploy made: workers that are ready, and how many requests each serves at a time."""

    endpoint_id: UUID
    engine: str
    replicas: int
    concurrency: int  # of one worker
    context_tokens: int
    memory_bytes: int  # of one worker
    generation: int
    apis: list[str] = Field(default_factory=list)


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
    """What a cluster should run for one endpoint. Without a `spec` it is to be left as it is: a job works on it, or failed."""

    endpoint_id: UUID
    replicas: int = 0
    spec: DeploySpec | None = None


class RegisterSpec(BaseModel):
    """The input of a registration; the kubeconfig is asked for by the cluster's id."""

    cluster_id: UUID
    name: str


class Registered(BaseModel):
    """What was found out about a cluster."""

    uid: str
    version: str
    facts: dict[str, Any]


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

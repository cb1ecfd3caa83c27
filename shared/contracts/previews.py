"""What a deployment would be, before anybody begins it: what is to run, what that takes, whether the cluster has it.

A site makes the `Preview` of a workload; with the plan that led to it, it is the answer of POST /workflows/{id}/preview.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field, computed_field


class Needs(BaseModel):
    """Of all workers together. CPU is in thousandths of a core, memory and storage in bytes."""

    workers: int
    cpu_millis: int
    memory_bytes: int
    gpus: int = 0
    gpu_resource: str | None = None
    storage_bytes: int = 0  # of a volume for the model
    node_disk_bytes: int = 0


class Room(BaseModel):
    """One resource where it is limited: `of` is a quota's name, `nodes` or `machine`.

    Amounts are as Kubernetes writes them. Of all nodes together there may be enough, and still no node with room for one
    worker: see `places`.
    """

    of: str
    resource: str
    limit: str
    used: str
    needed: str
    fits: bool


class Preview(BaseModel):
    """`problems` are sentences, and `code` is the first one's, as a job's failure; without any, the cluster takes all of
    it and, as far as we may see, has room.

    `places` is how many workers it could hold beside what is ours; pods of other namespaces are not visible to us, so it
    is an upper bound. `manifests` are the objects of a Kubernetes cluster, complete but for the values of Secrets.
    """

    needs: Needs | None = None
    quotas: list[Room] = Field(default_factory=list)
    capacity: list[Room] = Field(default_factory=list)
    places: int | None = None
    problems: list[str] = Field(default_factory=list)
    code: str | None = None
    manifests: list[dict[str, Any]] = Field(default_factory=list)

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated properties
    @property
    def fits(self) -> bool:
        return not self.problems


class PlannedWorkers(BaseModel):
    """How a model would be served. All workers are alike; memory (bytes) and threads are of one."""

    engine: str
    replicas: int
    concurrency: int  # requests that one worker serves at the same time
    context_tokens: int
    memory_bytes: int
    threads: int
    apis: list[str]


class DeployPreview(Preview):
    """`plan` is null where nothing can run the model there: `problems` say why, and nothing else is known then.

    `notes` say how the model's files would come to the workers.
    """

    object: Literal["preview"] = "preview"
    plan: PlannedWorkers | None = None
    notes: list[str] = Field(default_factory=list)

"""The runtime interface: what a cluster is asked to run, and what it says of it.

`engines` make the `Process` of a workload or its `Container`, `local` runs the one and `kubernetes` the other, the
cluster's jobs and observers call them. All sizes are in bytes, all durations in seconds, all times in UTC. Intent
carries a `generation`: a caller with an older one than the runtime has seen is refused.
"""

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field, SecretStr, model_validator

from services.cluster.runtimes.containers import Container, Delivery, Exposure, SecretName
from shared.contracts.deployments import Autoscale
from shared.jobs.outcomes import Permanent

EndpointId = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]

MAX_REPLICAS = 256

WorkerState = Literal["starting", "ready", "unhealthy", "restarting", "crash_loop", "stopping", "exited"]

Reason = Literal[
    "exited",  # the process ended by itself; `exit_code` says how
    "signal",  # the process was ended by a signal that was not ours; `exit_code` is its negative number
    "out_of_memory",  # over its memory limit, or ended by the kernel for want of memory
    "unhealthy",  # its health path stopped answering
    "start_timeout",  # it did not become healthy in time
    "cannot_start",  # the program could not be started at all
    "stopped",  # stopped as asked
    "lost",  # its supervisor is gone; the next reconcile starts it again
    # of clusters that run pods
    "no_image",  # there is no such image
    "pull_denied",  # the registry does not give the image to the cluster
    "pull_failed",  # the registry could not be reached, or sent nonsense
    "unschedulable",  # no node has room, or none is suitable
    "claim_not_bound",  # its volume is not there
    "mount_failed",  # a volume, Secret or ConfigMap could not be mounted
    "not_created",  # the cluster refuses its pod: quota, admission, security
    "quota_exceeded",
    "admission_denied",
    "load_failed",  # the model's files could not be fetched
    "evicted",  # its node was short of memory or disk
    "node_lost",  # its node does not answer
    "deadline",  # the cluster gave up waiting
    "removed_by_others",  # objects of ours were deleted
    "changed_by_others",  # objects of ours were edited
]


class StaleGeneration(Permanent):
    """The caller acts on an older intent than the runtime has already seen."""

    def __init__(self, endpoint_id: str, given: int, seen: int) -> None:
        super().__init__("stale_generation", f"endpoint {endpoint_id} is at generation {seen}; {given} is older")


class InsufficientCapacity(Permanent):
    """The cluster has no room for what is asked. `lacking` maps a resource (memory, cpu) to how much is missing."""

    def __init__(self, message: str, lacking: dict[str, float]) -> None:
        super().__init__("insufficient_capacity", message)
        self.lacking = lacking


class UnknownEndpoint(Permanent):
    def __init__(self, endpoint_id: str) -> None:
        super().__init__("unknown_endpoint", f"the cluster runs no endpoint {endpoint_id}")


class Gpu(BaseModel):
    name: str
    memory_bytes: int | None = None


class Node(BaseModel):
    name: str
    cpus: float
    memory_bytes: int
    memory_available_bytes: int
    disk_available_bytes: int | None = None
    gpus: list[Gpu] = Field(default_factory=list)
    os: str
    arch: str
    runtime_version: str


class ClusterFacts(BaseModel):
    nodes: list[Node]


class Capacity(BaseModel):
    """What may be promised to workers and what already is. `threads` counts CPUs times the overcommit."""

    memory_bytes: int
    memory_promised_bytes: int
    memory_available_bytes: int  # that the machine has free at this moment
    threads: int
    threads_promised: int
    workers: int


class Health(BaseModel):
    """When a worker counts as ready, and when as unhealthy."""

    path: str = Field("/health", pattern=r"^/[!-~]*$")
    interval: float = Field(2.0, gt=0)
    timeout: float = Field(5.0, gt=0)
    failures: int = Field(3, ge=1)  # in a row: unhealthy; twice as many: restarted
    start_timeout: float = Field(600.0, gt=0)


class Process(BaseModel):
    """A server to run, as a local process.

    In `argv` and the values of `environment`, `{port}` becomes the port to listen on at 127.0.0.1 (the server must set
    SO_REUSEADDR, as servers do: the supervisor keeps the port bound), `{api_key_file}` the file with the API key, and
    `{directory}` the worker's own folder, which is also its working directory and HOME.
    """

    argv: list[str] = Field(min_length=1)
    environment: dict[str, str] = Field(default_factory=dict)
    health: Health = Field(default_factory=Health)
    stop_grace: float = Field(10.0, ge=0)  # between SIGTERM and SIGKILL


class Workload(BaseModel):
    """What should run for one endpoint: `replicas` workers, numbered from 0. Memory and threads are per worker.

    A worker is a `process` for a runtime of processes, a `container` for one of pods. The rest is for pods only;
    `secrets` are the values behind the names in `container`, and `job` is the job that asks for all this.
    """

    endpoint_id: EndpointId
    generation: int = Field(ge=0)
    replicas: int = Field(ge=0, le=MAX_REPLICAS)
    process: Process | None = None
    memory_bytes: int = Field(gt=0)
    threads: int = Field(1, ge=1)
    api_key: SecretStr | None = None
    container: Container | None = None
    secrets: dict[SecretName, SecretStr] = Field(default_factory=dict)
    delivery: Delivery | None = None
    exposure: Exposure | None = None
    autoscale: Autoscale | None = None
    job: str | None = Field(None, pattern=r"^[a-z0-9-]{1,63}$")

    @model_validator(mode="after")
    def _one_kind(self) -> "Workload":
        if (self.process is None) == (self.container is None):
            raise ValueError("a workload has either a process or a container")
        return self


Via = Literal[
    "direct",  # its url answers, with the worker's key as Bearer
    "ingress",  # the same, with `host` as Host header
    "api_server",  # its url is a proxy of the cluster's API server, which `KubernetesRuntime.transport` speaks to
]


class WorkerStatus(BaseModel):
    """One worker as it is now. `reason`, `exit_code` and `last_log` tell of its latest end, and stay while it restarts."""

    id: str  # {endpoint_id}-{ordinal}, or the pod's name, of several pods the leader's
    ordinal: int
    generation: int
    state: WorkerState
    pid: int | None = None  # of the server
    port: int | None = None
    url: str | None = None
    via: Via = "direct"
    host: str | None = None  # the Host header to send, where it is not the URL's
    node: str | None = None
    gpus: int = 0
    memory_bytes: int | None = None
    started_at: datetime | None = None
    ready_at: datetime | None = None
    restarts: int = 0
    reason: Reason | None = None
    message: str | None = None  # the reason as a sentence
    exit_code: int | None = None
    last_log: list[str] = Field(default_factory=list)


class Observation(BaseModel):
    """An endpoint as it is now, and the intent (`generation`, `replicas`) that the runtime works towards.

    `reason` and `message` tell why there are no workers, or what others have changed; a worker's own are with it.
    """

    endpoint_id: str
    generation: int
    replicas: int
    workers: list[WorkerStatus]
    observed_at: datetime
    reason: Reason | None = None
    message: str | None = None

    @property
    def ready(self) -> list[WorkerStatus]:
        return [worker for worker in self.workers if worker.state == "ready"]


class LogLine(BaseModel):
    worker: str
    time: datetime
    text: str


Progress = Callable[[float | None, str], None]
"""Called with percent (0 to 100) and a sentence, when either changes."""


class Runtime(Protocol):
    """Every operation is idempotent and safe against other callers, in this process or another."""

    async def inspect(self) -> ClusterFacts:
        """What the cluster is made of."""

    async def apply(self, workload: Workload) -> Observation:
        """Make it so: start what is missing, stop what is too much, replace what has changed. Does not wait for ready.

        Raises StaleGeneration, InsufficientCapacity.
        """

    async def scale(self, endpoint_id: str, replicas: int, generation: int) -> Observation:
        """Change the number of workers and touch none of the others. Raises as `apply`, and UnknownEndpoint."""

    async def observe(self) -> dict[str, Observation]:
        """Every endpoint that is here. Cheap enough to be called every second."""

    async def observe_one(self, endpoint_id: str) -> Observation | None:
        """One endpoint, at the cost of one. None: it is not here."""

    async def wait_ready(
        self, endpoint_id: str, replicas: int, timeout: float, on_progress: Progress | None = None
    ) -> Observation:
        """Return when `replicas` workers are ready; raise Permanent with the worker's own reason when that fails."""

    async def logs(self, endpoint_id: str, worker: int | None = None, tail: int = 200) -> list[LogLine]:
        """The latest lines of one worker or of all, oldest first. Raises UnknownEndpoint."""

    def follow(self, endpoint_id: str, worker: int | None = None, tail: int = 20) -> AsyncIterator[LogLine]:
        """The latest lines, then each new one, until the endpoint is removed."""

    async def remove(self, endpoint_id: str, generation: int | None = None) -> None:
        """Stop everything of the endpoint, make sure that it is gone, and forget it. Raises StaleGeneration."""

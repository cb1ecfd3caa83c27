"""What a container of a workload is made from: the counterpart of `base.Process` for clusters that run pods.

`engines` make a `Container`, jobs add what only the platform knows (`Delivery`, `Exposure`, `Autoscale`), and
`kubernetes` turns all of it into objects. Nothing here holds a secret: secrets go by their names, and their values
travel beside, in `base.Workload`. Sizes are in bytes, CPU is in thousandths of a core, durations in seconds.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from shared.contracts.models import ModelFile

SecretName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$")]
Path = Annotated[str, Field(pattern=r"^/[!-~]{0,255}$")]
DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Image = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]{0,254}$")]

API_KEY: SecretName = "api-key"  # the secret that Workload.api_key becomes
LOADER_TOKEN: SecretName = "loader-token"  # noqa: S105 (a name)
SECRETS = "/etc/stepway/secrets"  # where `Container.secret_files` are, by their names
FILES = "/etc/stepway/files"  # where `Container.files` are
MODEL = "/models"  # where the model's files are

PULL_SECONDS = 1800.0  # at most, for an image: those of GPU servers are of many gigabytes
SLOWEST_FETCH = 10 * 1024**2  # bytes per second of a model that a pod fetches


class GpuRequest(BaseModel):
    """`products`: the kinds of GPU that will do, as nodes' labels name them; none given: any."""

    resource: str = Field("nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._+-]{1,63}$")
    count: int = Field(ge=1, le=1024)
    products: list[str] = Field(default_factory=list)


class Resources(BaseModel):
    """Of one pod. Memory is both requested and the limit; CPU beyond the request is used when it is free."""

    cpu_millis: int = Field(ge=1)
    cpu_limit_millis: int | None = Field(None, ge=1)
    memory_bytes: int = Field(gt=0)
    gpus: GpuRequest | None = None


class Probes(BaseModel):
    """Startup, readiness and liveness by HTTP. A worker has `start_seconds` to load its model before it is restarted."""

    ready_path: Path = "/health"
    live_path: Path | None = None  # None: as `ready_path`
    start_seconds: float = Field(600.0, gt=0)
    interval: float = Field(5.0, ge=1)
    timeout: float = Field(5.0, ge=1)
    failures: int = Field(3, ge=1)  # in a row: no more requests; four times as many: restarted


class Container(BaseModel):
    """A server to run. It reaches the model below `/models`, and `files` below `/etc/stepway/files`.

    A worker is one pod, or a group of `pods` where no node has what it takes: all run the same, each with the whole of
    `resources`, and answer the probes at `port`; requests go to the first only. Those of a group know by variables who
    they are: STEPWAY_RANK (from 0, the leader), STEPWAY_PODS, STEPWAY_POD_IP, STEPWAY_LEADER (the leader's host name),
    and STEPWAY_TEMPLATE, in which pods differ that are not made alike and must not work together.

    Secrets of the workload come as variables (`secret_environment` maps a variable to a secret's name) and as files
    below `/etc/stepway/secrets`. Written to are only `/tmp`, `/dev/shm` and the `scratch` folders; the user is never root.
    """

    image: Image
    command: list[str] = Field(default_factory=list)
    args: list[str] = Field(default_factory=list)
    environment: dict[VariableName, str] = Field(default_factory=dict)
    secret_environment: dict[VariableName, SecretName] = Field(default_factory=dict)
    secret_files: list[SecretName] = Field(default_factory=list)
    files: dict[FileName, str] = Field(default_factory=dict)
    port: int = Field(8080, ge=1024, le=65535)
    pods: int = Field(1, ge=1, le=16)
    probes: Probes = Field(default_factory=Probes)
    resources: Resources
    shared_memory_bytes: int = Field(0, ge=0)
    scratch: list[Path] = Field(default_factory=list)
    scratch_bytes: int = Field(2 * 1024**3, ge=0)
    drain_seconds: float = Field(3.0, ge=0, le=600)  # between being taken out of service and being told to end
    stop_grace: float = Field(30.0, ge=0, le=3600)  # between being told and being killed
    user: int = Field(10001, ge=1)
    runtime_class: DnsName | None = None
    loader_image: Image | None = None  # has Python 3.9 or newer; None: the container's own image has

    @property
    def image_of_loader(self) -> str:
        return self.loader_image or self.image


class Claim(BaseModel):
    """A persistent volume claim that holds the model, filled once and read by every worker."""

    size_bytes: int = Field(gt=0)
    storage_class: DnsName | None = None  # None: the cluster's default
    shared: bool = False  # the class lets pods on several nodes read it


class Delivery(BaseModel):
    """How the model's files reach the workers.

    fetch: each pod fetches them into a folder of its own; claim: a Job fetches them into a claim; push: they are sent
    through the API server into a claim. `url` is where `loader` asks (its module says how), with the secret
    `loader-token`; `ca_pem` are the authorities of that address where they are not public ones.
    """

    mode: Literal["fetch", "claim", "push"]
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the manifest
    files: list[ModelFile]
    url: str | None = Field(None, pattern=r"^https?://[!-~]{1,1000}$")
    ca_pem: str | None = Field(None, max_length=100_000)
    claim: Claim | None = None

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @model_validator(mode="after")
    def _complete(self) -> "Delivery":
        if (self.mode == "fetch") == (self.claim is not None):
            raise ValueError("a claim goes with the modes claim and push")
        if (self.mode == "push") == (self.url is not None):
            raise ValueError("an url goes with the modes fetch and claim")
        return self


class Exposure(BaseModel):
    """A way in from outside the cluster. Requests reach the workers at `url` when their Host header is `host`.

    So no name needs to be known to any DNS, no path is rewritten, and many endpoints share one address.
    """

    url: str = Field(pattern=r"^https?://[!-~]{1,1000}$")  # the cluster's ingress
    host: DnsName
    ingress_class: DnsName | None = None
    gateway: DnsName | None = None  # a Gateway in our namespace: an HTTPRoute is made in place of an Ingress

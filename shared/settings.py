"""Every setting, read from the environment (`STEPWAY_*`) once. Nothing else reads the environment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, SecretStr, model_validator

from shared.security.pins import parse_pin


def _listed(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("must be http://host or https://host, with a port and a path if need be, and no credentials")
    if parts.query or parts.fragment or not value.isprintable() or " " in value:
        raise ValueError("must have neither a query nor a fragment nor spaces")
    _ = parts.port  # raises ValueError when out of range
    return value.rstrip("/")


Delays = Annotated[list[Annotated[float, Field(ge=0)]], BeforeValidator(_listed)]


def _pinned(values: list[str]) -> list[str]:
    for value in values:
        parse_pin(value)
    return values


Listed = Annotated[list[str], BeforeValidator(_listed)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]


def _prefix(value: str) -> str:
    value = value.strip("/")
    return f"{value}/" if value else ""


# A bucket without dots: a certificate for many hosts covers no name with more of them.
Bucket = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$")]
Prefix = Annotated[
    str, Field(pattern=r"^/?([a-z0-9][a-z0-9_.-]{0,62}(/[a-z0-9][a-z0-9_.-]{0,62}){0,5})?/?$"), AfterValidator(_prefix)
]
Key = Annotated[str, Field(pattern=r"^[!-~]{1,200}$")]


class Settings(BaseModel):
    data_dir: Path = Path("~/.local/share/stepway")
    host: str = "127.0.0.1"
    port: int = 8400
    database_url: str | None = Field(None, validation_alias=AliasChoices("database_url", "DATABASE_URL"))
    objects_dir: Path | None = None
    machine_dir: Path | None = None
    key_file: Path | None = None

    # objects in a bucket of MinIO or another S3, once `s3_bucket` is set
    s3_endpoint: BaseUrl | None = None
    s3_bucket: Bucket | None = None
    s3_prefix: Prefix = ""  # of our objects in a bucket that others use as well
    s3_region: str = Field("us-east-1", pattern=r"^[a-zA-Z0-9-]{1,40}$")
    s3_access_key: Key | None = None
    s3_secret_key: SecretStr | None = None
    s3_secret_key_file: Path | None = None
    s3_ca: Path | None = None  # PEM of the authorities of the endpoint, where they are not public ones

    allowed_hosts: Listed = ["127.0.0.1", "localhost", "[::1]"]
    cors_origins: Listed = []
    advertised_url: BaseUrl | None = None  # where pods of clusters reach us for a model's bytes; None: we send them
    advertised_ca: Path | None = None  # PEM of the authorities of that address, where they are not public ones
    model_roots: Listed = []  # folders from which models may be added by path
    allow_private_addresses: bool = False  # for `url` models, the hub, tasks of flows and webhooks
    trusted_hosts: Listed = []  # hosts (`host` or `host:port`) that may be fetched from, whatever they resolve to
    resolve: Annotated[Listed, AfterValidator(_pinned)] = []  # `host:port:address[:port]`, for tasks and webhooks
    outbound_ca: Path | None = None  # PEM of authorities that tasks and webhooks accept besides the public ones
    flow_openai_base_url: BaseUrl = "https://api.openai.com/v1"  # whom tasks call that name no other; trusted
    allow_private_clusters: bool = True
    allow_loopback_clusters: bool = False
    hf_endpoint: str = Field("https://huggingface.co", validation_alias=AliasChoices("hf_endpoint", "HF_ENDPOINT"))
    gateway_url: BaseUrl | None = None  # where flows call endpoints; None: this process is the gateway as well
    image_llama_cpp: str = "ghcr.io/ggml-org/llama.cpp:server"
    image_llama_cpp_program: Literal["server", "xllamacpp"] = "server"  # the program that the image starts
    image_vllm: str = "docker.io/vllm/vllm-openai:v0.11.0"
    image_litellm: str = "ghcr.io/berriai/litellm-non_root:main-stable"
    image_loader: str | None = "docker.io/library/python:3.13-slim"  # with Python, for images without it
    inspect_clusters_seconds: float = Field(3600.0, gt=0)  # after which a registered cluster is looked at anew
    draft_idle_days: int = 30
    job_retention_days: int = 90
    maintenance_seconds: float = Field(600.0, gt=0)  # between two rounds of what must be done now and then
    webhook_timeout: float = Field(15.0, gt=0)  # seconds that a receiver has for its answer
    # seconds before each further attempt; after the last one a message is given up
    webhook_retry_delays: Delays = [5, 300, 1800, 7200, 18000, 36000, 50400]
    rate_quota: int = 6000  # requests of one key in each window
    rate_window: float = 10.0  # seconds
    streams_per_key: int = Field(100, ge=1)  # event streams, followed logs and waits that are open at once
    max_model_bytes: int = 500 * 1024**3
    flows_per_project: int = Field(1000, ge=1)
    flow_executions_in_flight: int = Field(1000, ge=1)  # of one project
    workflow_servers_per_project: int = Field(100, ge=1)  # that are registered
    workflow_runs_kept: int = Field(10_000, ge=1)  # of one workflow server, the newest
    flow_max_file_bytes: int = Field(256 * 1024**2, ge=1)  # of a file that is uploaded for flows
    flow_files_per_project: int = Field(10_000, ge=1)  # uploads that one project keeps
    flow_file_bytes_per_project: int = Field(50 * 1024**3, ge=1)  # of all of them together
    flow_files_kept_days: int = Field(30, ge=1)  # since an execution was last given it

    # of services that are processes of their own
    internal_port: int = 8401  # where a service's sidecar reaches it, on the loopback address only
    dapr_http_port: int | None = Field(None, validation_alias=AliasChoices("dapr_http_port", "DAPR_HTTP_PORT"))
    dapr_grpc_port: int | None = Field(None, validation_alias=AliasChoices("dapr_grpc_port", "DAPR_GRPC_PORT"))
    dapr_api_token: SecretStr | None = Field(None, validation_alias=AliasChoices("dapr_api_token", "DAPR_API_TOKEN"))
    app_api_token: SecretStr | None = Field(None, validation_alias=AliasChoices("app_api_token", "APP_API_TOKEN"))
    dapr_prefix: str = Field("", pattern=r"^[a-z0-9-]{0,40}$")  # begins the names of our services in a shared Dapr
    service_secret: SecretStr | None = Field(None, min_length=32)  # of the app: it makes all services' keys
    service_key: SecretStr | None = None  # of any other service: what it shares with the app

    log_format: Literal["auto", "json", "text"] = "auto"  # auto: text for a terminal, else JSON
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(
        None, ge=0, le=65535
    )  # metrics and probes, for whoever reaches it; None: not served
    otlp_endpoint: BaseUrl | None = None  # of an OpenTelemetry collector, for OTLP over HTTP; None: no spans are made
    trace_ratio: float = Field(1.0, ge=0.0, le=1.0)  # of the traces that are kept

    model_config = {"populate_by_name": True, "hide_input_in_errors": True}  # an input may be a secret

    @model_validator(mode="after")
    def _whole(self) -> "Settings":
        if self.s3_bucket is None:
            return self
        if self.s3_endpoint is None or self.s3_access_key is None:
            raise ValueError("a bucket for objects needs STEPWAY_S3_ENDPOINT and STEPWAY_S3_ACCESS_KEY as well")
        if (self.s3_secret_key is None) == (self.s3_secret_key_file is None):
            raise ValueError("a bucket for objects needs one of STEPWAY_S3_SECRET_KEY and STEPWAY_S3_SECRET_KEY_FILE")
        if urlsplit(self.s3_endpoint).path:
            raise ValueError("STEPWAY_S3_ENDPOINT must have no path: the bucket has a setting of its own")
        return self

    @property
    def answered_hosts(self) -> list[str]:
        """The names under which requests are answered: the allowed ones, and our own."""
        own = urlsplit(self.advertised_url or "").hostname
        return [*self.allowed_hosts, f"[{own}]" if ":" in own else own] if own else self.allowed_hosts


def load(environment: Mapping[str, str], **given: object) -> Settings:
    """Settings from `STEPWAY_*` variables; what is `given` (and not None) wins."""
    values: dict[str, object] = {}
    for name, info in Settings.model_fields.items():
        if f"STEPWAY_{name.upper()}" in environment:
            values[name] = environment[f"STEPWAY_{name.upper()}"]
            continue
        alias = info.validation_alias
        for choice in alias.choices if isinstance(alias, AliasChoices) else ():
            if isinstance(choice, str) and choice.isupper() and choice in environment:
                values[name] = environment[choice]
    values.update({name: value for name, value in given.items() if value is not None})
    return Settings.model_validate(values)

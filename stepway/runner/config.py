"""What can be set of a workflow server. `stepway serve` makes one from flags and the environment; a program by hand."""

from dataclasses import dataclass, field
from pathlib import Path

from stepway.runner.store import Retention

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Config:
    """Limits and places; times in seconds, sizes in bytes, None is no bound."""

    host: str | None = None  # None: loopback, and all addresses where a key is asked for
    port: int = 8080
    database: str | None = field(default=None, repr=False)  # a PostgreSQL URL; without it and `data_dir` it is memory
    data_dir: Path | None = None  # an embedded PostgreSQL lives here
    concurrent_runs: int | None = None  # of one flow, on this server; a flow's own `num_concurrent_runs` holds too
    max_body: int = 10 * MIB
    max_event: int = 10 * MIB  # one event of a run, as JSON
    max_run_time: float | None = None  # of a run, waiting included
    idle_release: float = 2.0  # how long a run waits for something from outside before it leaves memory
    drain: float = 5.0  # from SIGTERM to the end
    heartbeat: float = 25.0  # between comments on a silent stream
    stream_buffer: int = MIB  # what of a run's events is read at once for one reader of its stream
    stream_stall: float = 60.0  # a reader that takes nothing for so long is let go
    allowed_origins: tuple[str, ...] = ()  # of web pages that may call from a browser; "*" is all
    retention: Retention = field(default_factory=lambda: Retention(events=10_000))
    platform_url: str | None = None  # the control plane that it is joined to
    platform_key: str | None = field(default=None, repr=False)
    platform_project: str | None = None  # its id there; None: the key's, or the one that everyone begins in
    key: str | None = field(default=None, repr=False)  # that callers show, on a server that is joined to no platform
    public_url: str | None = None  # where others reach this server
    name: str | None = None  # of this server, for people
    insecure: bool = False  # whoever reaches the host is served without a key

    @property
    def asks_keys(self) -> bool:
        """Whether callers show a key: one of the platform's, or this server's own."""
        return self.key is not None or bool(self.platform_url and self.platform_key)

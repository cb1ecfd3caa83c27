"""What a supervisor is told (spec.json) and what it says (state.json). Standard library only.

The manager (`store`) writes the spec, the supervisor the state; both are read by either side.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from services.cluster.runtimes.local.files import read_json

SPEC = "spec.json"
STATE = "state.json"
LOCK = "supervisor.lock"  # held while a supervisor lives; its content is `{"supervisor": list(Identity)}`


@dataclass(frozen=True, slots=True)
class Supervision:
    """How a worker is looked after. Seconds, except where the name says otherwise."""

    backoff: float = 0.25  # before the first restart; doubles at each further one
    backoff_max: float = 30.0
    healthy_after: float = 60.0  # ready for so long: the failures before are forgotten
    crash_loop_after: int = 3  # failures in a row
    crash_loop_delay: float = 60.0  # between tries in a crash loop
    memory_interval: float = 0.5
    log_max_bytes: int = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Spec:
    """One worker. `digest` covers all but the generation: a worker whose digest is unchanged is left alone."""

    id: str
    ordinal: int
    generation: int
    digest: str
    argv: list[str]
    environment: dict[str, str]
    memory_bytes: int
    health_path: str
    health_interval: float
    health_timeout: float
    health_failures: int
    start_timeout: float
    stop_grace: float
    api_key_file: str | None
    supervision: Supervision

    @classmethod
    def read(cls, folder: Path) -> "Spec | None":
        value = read_json(folder / SPEC)
        if value is None:
            return None
        try:
            return cls(**{**value, "supervision": Supervision(**value["supervision"])})
        except (TypeError, KeyError):  # written by a version that knew other fields: the next apply writes it anew
            return None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class State:
    """What the supervisor knows of its worker. Times are seconds since the epoch; `server` is `list(Identity)`."""

    digest: str = ""
    state: str = "starting"
    server: list[Any] | None = None
    port: int | None = None
    started_at: float | None = None
    ready_at: float | None = None
    restarts: int = 0
    memory_bytes: int | None = None
    reason: str | None = None
    message: str | None = None
    exit_code: int | None = None
    last_log: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "State | None":
        value = read_json(folder / STATE)
        if value is None:
            return None
        return cls(**{name: value[name] for name in cls.__dataclass_fields__ if name in value})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

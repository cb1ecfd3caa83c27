"""What every service is made of: its settings checked, who it is, its sidecar, and the ports of others through it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr
from starlette.types import ASGIApp

from services.assembly.process import StartError
from shared.jobs.dapr.sidecar import Sidecar, SidecarAddress
from shared.rpc.client import remote
from shared.rpc.identity import APP, Identity
from shared.rpc.server import Served
from shared.settings import Settings
from shared.telemetry.probes import Health

CALL_PATIENCE = 120.0  # seconds that a step waits for the app, which may be starting again
LEDGER_PATIENCE = 7 * 86400.0  # reports are worth waiting for: who has lost the run is stopped by the beat
BEAT_PATIENCE = 2.0  # seconds: what a beat tells is stale by then
ASK_PATIENCE = 5.0  # seconds, where a request waits


class Service(Protocol):
    """One service of a process. `public` is served to whoever may reach it, `ports` to other services."""

    @property
    def public(self) -> ASGIApp | None: ...

    @property
    def ports(self) -> list[Served]: ...

    async def start(self, health: Health) -> None: ...

    async def stop(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one process. `app_token` is what the sidecar shows us."""

    settings: Settings
    service: str
    identity: Identity
    sidecar: Sidecar
    app_token: SecretStr

    @classmethod
    def of(cls, settings: Settings, service: str) -> "Parts":
        """Raises StartError that names what is not set."""
        needed: dict[str, object] = {
            "DAPR_HTTP_PORT": settings.dapr_http_port, "DAPR_GRPC_PORT": settings.dapr_grpc_port,
            "DAPR_API_TOKEN": settings.dapr_api_token, "APP_API_TOKEN": settings.app_api_token,
        }  # fmt: skip
        if service == APP:
            needed |= {"DATABASE_URL": settings.database_url, "STEPWAY_SERVICE_SECRET": settings.service_secret}
        else:
            needed |= {"STEPWAY_SERVICE_KEY": settings.service_key}
        missing = [name for name, value in needed.items() if not value]
        if missing:
            raise StartError(f"The service {service} needs {', '.join(missing)} to be set.")
        assert settings.dapr_http_port is not None
        assert settings.dapr_grpc_port is not None
        assert settings.dapr_api_token is not None
        assert settings.app_api_token is not None
        identity = Identity(
            service, secret=settings.service_secret if service == APP else None, key=settings.service_key
        )
        address = SidecarAddress(
            settings.dapr_http_port, settings.dapr_grpc_port, settings.dapr_api_token.get_secret_value(),
            prefix=settings.dapr_prefix,
        )  # fmt: skip
        return cls(settings, service, identity, Sidecar(address, identity), settings.app_api_token)

    def app(self, port: type[Any], patience: float = CALL_PATIENCE) -> Any:
        """A port of the app's."""
        return remote(port, APP, self.sidecar, patience=patience)


def scratch_of(settings: Settings) -> Path:
    """Where unfinished work is kept, and objects where there is no bucket."""
    root = settings.data_dir.expanduser().absolute()
    return (settings.objects_dir or root / "objects").expanduser().absolute()

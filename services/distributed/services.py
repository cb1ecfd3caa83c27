"""The services that there are, by the names by which Dapr and the others know them."""

from pathlib import Path

from services.distributed.app import AppService
from services.distributed.cluster import ClusterService
from services.distributed.gateway import GatewayService
from services.distributed.model import ModelService
from services.distributed.process import Make, run_service
from shared.settings import Settings

SERVICES: dict[str, Make] = {
    "app": AppService, "model": ModelService, "cluster": ClusterService, "gateway": GatewayService,
}  # fmt: skip


def run(settings: Settings, name: str, ready_file: Path | None) -> int:
    """Run the service of this name until it is told to stop; returns the exit code."""
    return run_service(settings, name, SERVICES[name], ready_file)

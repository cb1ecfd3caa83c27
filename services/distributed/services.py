"""The services that there are, by the names by which Dapr and the others know them."""

from pathlib import Path
from typing import NoReturn

from services.distributed.app import AppService
from services.distributed.cluster import ClusterService
from services.distributed.gateway import GatewayService
from services.distributed.model import ModelService
from services.distributed.process import Make, run_service
from shared.settings import Settings

SERVICES: dict[str, Make] = {
    "app": AppService, "model": ModelService, "cluster": ClusterService, "gateway": GatewayService,
}  # fmt: skip


def run(settings: Settings, name: str, ready_file: Path | None) -> NoReturn:
    """Run the service of this name until it is told to stop, and end the process."""
    run_service(settings, name, SERVICES[name], ready_file)

"""The services that there are, by the names by which Dapr and the others know them.

A process imports its own service only: the image of one lacks what the others need.
"""

from importlib import import_module
from pathlib import Path
from typing import NoReturn

from services.distributed.process import Make, run_service
from shared.settings import Settings

SERVICES = {
    "app": "AppService",
    "model": "ModelService",
    "cluster": "ClusterService",
    "gateway": "GatewayService",
    "flow": "FlowService",
}


def make_of(name: str) -> Make:
    """What makes the service of this name."""
    made: Make = getattr(import_module(f"services.distributed.{name}"), SERVICES[name])
    return made


def run(settings: Settings, name: str, ready_file: Path | None) -> NoReturn:
    """Run the service of this name until it is told to stop, and end the process."""
    run_service(settings, name, make_of(name), ready_file)

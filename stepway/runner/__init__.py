"""Serves Python-coded workflows (`llama-index-workflows`) over HTTP: `WorkflowServer`, `stepway serve FILE`.

It runs beside a user's own code, so it imports nothing of `services` or `shared`: folders of those names are the user's.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepway.runner.config import Config
    from stepway.runner.endpoints import endpoint
    from stepway.runner.server import WorkflowServer
    from stepway.runner.store import Retention

__all__ = ["Config", "Retention", "WorkflowServer", "endpoint"]

_HOMES = {"Config": "config", "Retention": "store", "WorkflowServer": "server", "endpoint": "endpoints"}


def __getattr__(name: str) -> Any:
    """Parts of this package are imported by themselves too, without the server."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

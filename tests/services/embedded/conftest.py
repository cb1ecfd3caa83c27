from tests.services.app.conftest import app, app_context, client, people, routes
from tests.services.cluster.runtimes.local.conftest import directory, new_runtime, runtime

__all__ = ["app", "app_context", "client", "directory", "new_runtime", "people", "routes", "runtime"]

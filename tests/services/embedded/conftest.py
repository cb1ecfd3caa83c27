from tests.services.app.conftest import app, app_context, client, people, routes
from tests.services.cluster.runtimes.local.conftest import directory, new_runtime, runtime
from tests.testbed.minio import minio

__all__ = ["app", "app_context", "client", "directory", "minio", "new_runtime", "people", "routes", "runtime"]

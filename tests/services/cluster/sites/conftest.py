from tests.testbed.cluster import cluster
from tests.testbed.kube import api_server

__all__ = ["api_server", "cluster"]

from tests.testbed.cluster import cluster
from tests.testbed.kube import api_server
from tests.testbed.kwok import kwok

__all__ = ["api_server", "cluster", "kwok"]

from tests.testbed.cluster import cluster
from tests.testbed.kube import api_server
from tests.testbed.kwok import kwok
from tests.testbed.minio import minio

__all__ = ["api_server", "cluster", "kwok", "minio"]

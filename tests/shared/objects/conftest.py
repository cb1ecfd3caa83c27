from tests.testbed.minio import minio

__all__ = ["minio"]

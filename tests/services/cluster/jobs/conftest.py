from tests.testbed.kube import api_server

__all__ = ["api_server"]

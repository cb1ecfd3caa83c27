"""Helm is needed for all of this; the cluster and the model are those of the other tests."""

import pytest

from tests.e2e.conftest import model_file
from tests.testbed.cluster import cluster
from tests.testbed.kube import api_server
from tests.testbed.machine import need

__all__ = ["api_server", "cluster", "model_file"]


@pytest.fixture(autouse=True, scope="session")
def _helm() -> None:
    need("helm")

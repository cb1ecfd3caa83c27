"""The main job, by services that are processes of their own, over Dapr, on a real cluster: the demo, and what is left."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from tests.e2e.registered import SERVES
from tests.e2e.services import Services, running_services
from tests.testbed.cluster import Cluster
from tests.testbed.machine import need


@pytest.fixture(scope="module")
def services(model_file: Path) -> Iterator[Services]:
    with running_services({"model_roots": model_file.parent, "allow_loopback_clusters": True, **SERVES}) as made:
        yield made


def test_the_demo_goes_all_the_way(services: Services, cluster: Cluster, tmp_path: Path) -> None:
    need(images=("llama",))
    cluster.load("llama")
    kubeconfig, key = tmp_path / "kubeconfig.yaml", tmp_path / "key"
    kubeconfig.write_bytes(cluster.api.access_kubeconfig())
    key.write_text(services.key)
    command = [sys.executable, "-m", "stepway", "demo", "--on", services.url, "--key-file", str(key)]
    done = subprocess.run(
        [*command, "--cluster", str(kubeconfig), "--exit"], capture_output=True, text=True, timeout=170, check=False,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + services.made_of.processes.logs(3000)
    for word in (
        "Adding a model",
        "Scanning it",
        "Deploying it",
        "Asking it",
        "2 workers",
        "Nothing of the demo is left",
    ):
        assert word in done.stderr
    assert cluster.ready_pods(NAMESPACE, "app.kubernetes.io/managed-by=stepway") == []
    assert {row[0] for row in services.sql("SELECT DISTINCT state FROM jobs.job")} == {"succeeded"}
    services.until_forgotten()

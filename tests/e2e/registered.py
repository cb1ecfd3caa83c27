"""A Stepway that has a real cluster registered, by the form, and a model that may be deployed there."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.cluster.runtimes.kubernetes.objects import GROUPS
from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from services.cluster.runtimes.kubernetes.removal import KINDS
from tests.e2e.instance import Stepway
from tests.e2e.relay import Relay
from tests.testbed.cluster import Cluster
from tests.testbed.machine import need

PYTHON, LLAMA = "stepway-testbed/python:1", "stepway-testbed/llama:1"
SERVES = {"image_llama_cpp": LLAMA, "image_llama_cpp_program": "xllamacpp", "image_loader": PYTHON}
KEPT = ("model_roots", "allow_loopback_clusters")  # settings that every test has

Json = dict[str, Any]


class Registered:
    """A Stepway that knows the cluster, by way of `relay`, and has a model that may be deployed."""

    def __init__(self, stepway: Stepway, cluster: Cluster, relay: Relay, model_file: Path) -> None:
        self.stepway, self.cluster, self.relay = stepway, cluster, relay
        self.id = self._register()
        self.model = stepway.made(stepway.import_model(str(model_file)))
        stepway.made(stepway.scan(self.model))

    def _register(self) -> str:
        there = self.cluster.api.url.encode()
        kubeconfig = self.cluster.api.access_kubeconfig().replace(
            there, f"https://127.0.0.1:{self.relay.port}".encode()
        )
        file = ("kubeconfig.yaml", kubeconfig, "application/yaml")
        fields = {"step_number": "1", "workflow_total_steps": "3", "name": "real", "trigger_workflow": "true"}
        form = {name: (None, value) for name, value in fields.items()} | {"configuration_file": file}
        answer = self.stepway.ask("POST", "/clusters/clusters", files=form)
        assert answer.status_code == 200, answer.text
        return self.stepway.made(answer.json())

    def with_settings(self, **settings: object) -> "Registered":
        """The same, with these settings and no others of the tests'."""
        wanted = {name: self.stepway.settings[name] for name in KEPT} | settings
        if self.stepway.settings != wanted:
            self.stepway.stop()
            self.stepway.settings = wanted
            self.stepway.start()
        return self

    def deploy(self, name: str, tuning: Json | None = None, **config: int) -> Any:
        given = {"concurrent_requests": 1, "avg_sequence_length": 64, "avg_context_length": 64, **config}
        return self.stepway.deploy(self.model, name=name, cluster_id=self.id, config=given, tuning=tuning)

    def step(self, workflow: Any, key: str) -> Json:
        job = self.stepway.get(f"/jobs/{workflow['job']['id']}")
        found: Json = next(one for one in job["steps"] if one["key"] == key)
        return found

    def left(self, endpoint: str) -> list[str]:
        """All that is in the namespace of an endpoint."""
        found = []
        for kind in KINDS:
            root, plural = GROUPS[kind]
            answer = self.cluster.api.admin.get(
                f"/{root}/namespaces/{NAMESPACE}/{plural}",
                params={"labelSelector": f"stepway/endpoint={endpoint}"},
            )
            if answer.status_code != 404:  # not every cluster has every kind
                found += [f"{kind}/{one['metadata']['name']}" for one in answer.raise_for_status().json()["items"]]
        return found

    def pods(self, endpoint: str) -> list[Json]:
        return self.cluster.ready_pods(NAMESPACE, f"stepway/endpoint={endpoint},app.kubernetes.io/component=worker")


@contextmanager
def registered_at(cluster: Cluster, model_file: Path) -> Iterator[Registered]:
    """An installation of its own that may read the folder of the model, and leaves no process."""
    need(images=("llama",))
    cluster.load("llama")
    with tempfile.TemporaryDirectory(prefix="stepway-e2e-") as name, Relay() as relay:
        relay.lead_to(cluster.api.url)
        settings: dict[str, Any] = {"model_roots": model_file.parent, "allow_loopback_clusters": True, **SERVES}
        stepway = Stepway(Path(name), **settings)
        try:
            yield Registered(stepway.start(), cluster, relay, model_file)
        finally:
            stepway.clean_up()

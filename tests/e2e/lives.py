"""A registered cluster's life through the API: registered, deployed to, given a worker, emptied, left.

Each stage is a job that `begin` triggers; after its end `check` looks at the cluster itself for what must be there now.
The fixtures give each file of tests a cluster of its own, whose servers it may stop, and one installation.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.cluster.jobs import JOBS
from services.cluster.runtimes.kubernetes.names import MANAGED_BY
from services.cluster.runtimes.kubernetes.objects import GROUPS
from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from services.cluster.runtimes.kubernetes.removal import KINDS
from tests.e2e.instance import FINAL, Stepway, until
from tests.testbed.cluster import Cluster
from tests.testbed.machine import need

SERVES = {"image_llama_cpp": "stepway-testbed/llama:1", "image_llama_cpp_program": "xllamacpp",
          "image_loader": "stepway-testbed/python:1"}  # fmt: skip
STAGES = ("register_cluster", "deploy_model", "add_worker", "delete_endpoint", "delete_cluster")
STEPS = {job.kind: [step.key for step in job.steps] for job in JOBS if job.kind in STAGES}
WORKERS = {"deploy_model": 1, "add_worker": 2}  # afterwards
PATIENCE = 400.0  # seconds; far more than a stage takes, a fault and a busy machine included

Json = dict[str, Any]


def left_in(cluster: Cluster) -> list[str]:
    """All that is managed by Stepway in its namespace."""
    found = []
    for kind in KINDS:
        root, plural = GROUPS[kind]
        wanted = {"labelSelector": f"{MANAGED_BY}=stepway"}
        answer = cluster.api.admin.get(f"/{root}/namespaces/{NAMESPACE}/{plural}", params=wanted)
        if answer.status_code != 404:  # not every cluster has every kind
            found += [f"{kind}/{one['metadata']['name']}" for one in answer.raise_for_status().json()["items"]]
    return found


def clear(cluster: Cluster) -> None:
    """Delete all that is managed by Stepway, for the next test, after one that has failed."""
    wanted = {"labelSelector": f"{MANAGED_BY}=stepway"}
    for kind in KINDS:
        root, plural = GROUPS[kind]
        path = f"/{root}/namespaces/{NAMESPACE}/{plural}"
        if kind == "Service":  # has no deletion of many
            for one in cluster.api.get(path, **wanted)["items"]:
                cluster.api.admin.delete(f"{path}/{one['metadata']['name']}")
        else:
            cluster.api.admin.delete(path, params={**wanted, "propagationPolicy": "Background"})
    until(lambda: not left_in(cluster), seconds=PATIENCE, what="the namespace to be empty")


class Life:
    """`model` may be deployed already. `stepway` may be replaced by another process of the same installation."""

    def __init__(self, stepway: Stepway, cluster: Cluster, model: str) -> None:
        self.stepway, self.cluster, self.model = stepway, cluster, model
        self.id = self.endpoint = ""

    def begin(self, kind: str) -> str:
        """Trigger a stage; its job's id."""
        stepway = self.stepway
        match kind:
            case "register_cluster":
                begun = self._register()
                self.id = begun["job"]["resource"]["id"]
            case "deploy_model":
                begun = stepway.deploy(self.model, name="life", cluster_id=self.id)
                self.endpoint = begun["job"]["resource"]["id"]
            case "add_worker":
                begun = stepway.add_worker(self.endpoint)
            case "delete_endpoint":
                begun = stepway.delete_endpoint(self.endpoint)
            case _:
                answer = stepway.ask("DELETE", f"/clusters/{self.id}")
                assert answer.status_code == 202, answer.text
                begun = {"job": answer.json()}
        return str(begun["job"]["id"])

    def _register(self) -> Any:
        fields = {"step_number": "1", "workflow_total_steps": "3", "name": "real", "trigger_workflow": "true"}
        file = ("kubeconfig.yaml", self.cluster.api.access_kubeconfig(), "application/yaml")
        form = {name: (None, value) for name, value in fields.items()} | {"configuration_file": file}
        answer = self.stepway.ask("POST", "/clusters/clusters", files=form)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ended(self, job: str) -> Json:
        """The job once it has ended."""

        def look() -> Json | None:
            seen: Json = self.stepway.get(f"/jobs/{job}?wait=10")
            return seen if seen["state"] in FINAL else None

        found = until(look, seconds=PATIENCE, what=f"job {job}")
        assert found is not None
        return found

    def done(self, kind: str) -> None:
        """The whole stage, with nothing in its way."""
        job = self.ended(self.begin(kind))
        assert job["state"] == "succeeded", job
        self.check(kind)

    def check(self, kind: str) -> None:
        """What must be so after the stage: in the answers, in the cluster, and at the endpoint."""
        stepway, known = self.stepway, [one["id"] for one in self.stepway.get("/clusters?kind=kubernetes")["data"]]
        assert known == ([] if kind == "delete_cluster" else [self.id])
        if known:  # a watch that the fault has cut looks again after a while
            where = f"/clusters/{self.id}"
            until(lambda: stepway.get(where)["state"] == "available", seconds=PATIENCE, what="the cluster to be seen")
        wanted = WORKERS.get(kind, 0)
        if not wanted:
            assert stepway.get("/endpoints")["data"] == []
            assert left_in(self.cluster) == []
            return
        (endpoint,) = stepway.get("/endpoints")["data"]
        assert endpoint["replicas"]["desired"] == wanted
        until(lambda: len(self.pods()) == wanted, seconds=PATIENCE, what=f"{wanted} ready pods")
        until(self.is_whole, seconds=PATIENCE, what="the endpoint to run")
        until(lambda: stepway.chats(self.endpoint), seconds=PATIENCE, what="an answer")

    def is_whole(self) -> bool:
        endpoint = self.stepway.get(f"/endpoints/{self.endpoint}")
        whole: bool = endpoint["state"] == "running" and endpoint["replicas"]["ready"] == len(self.pods())
        return whole

    def pods(self) -> list[Json]:
        labels = f"stepway/endpoint={self.endpoint},app.kubernetes.io/component=worker"
        return self.cluster.ready_pods(NAMESPACE, labels)

    def clear(self) -> None:
        """After a test, however it ended: nothing is registered, nothing is left in the cluster."""
        for one in self.stepway.get("/clusters?kind=kubernetes")["data"]:
            self.stepway.ask("DELETE", f"/clusters/{one['id']}?force=true")
        for one in self.stepway.get("/endpoints")["data"]:  # what failed is still listed
            self.stepway.ask("DELETE", f"/endpoints/{one['id']}")
        until(lambda: not self.stepway.get("/endpoints")["data"], seconds=PATIENCE, what="no endpoint to be listed")
        clear(self.cluster)


def rounds(points: dict[str, Any]) -> range:
    return range(max(map(len, points.values())))


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    need("kube", "coredns", pods=True, images=("python", "llama"))
    with Cluster() as cluster:
        cluster.api.apply_access()
        cluster.load("python", "llama")
        yield cluster


@pytest.fixture(scope="module")
def installed(own: Cluster, model_file: Path) -> Iterator[tuple[Stepway, str]]:
    """One installation for all tests, and the model in it."""
    with tempfile.TemporaryDirectory(prefix="stepway-e2e-") as name:
        settings: dict[str, Any] = {"model_roots": model_file.parent, **SERVES}
        stepway = Stepway(Path(name), **settings)
        try:
            stepway.start()
            model = stepway.made(stepway.import_model(str(model_file)))
            stepway.made(stepway.scan(model))
            yield stepway, model
        finally:
            stepway.clean_up()


@pytest.fixture
def life(installed: tuple[Stepway, str], own: Cluster) -> Iterator[Life]:
    stepway, model = installed
    if stepway.ended:  # a test that failed has left it so
        stepway.start()
    life = Life(stepway, own, model)
    life.clear()
    yield life
    if not stepway.ended:
        life.clear()

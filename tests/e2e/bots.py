"""Those who ask for jobs in the chaos (`tests.e2e.chaos`): bots that bring models, an operator who deploys one.

Whoever asks repeats what got no answer, as a bot does: each request has an Idempotency-Key.
"""

import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tests.e2e.instance import FINAL, ICON, Stepway
from tests.testbed.cluster import Cluster

PATIENCE = 240.0  # seconds that one request, or one job, may take with all that happens to it

AT_ONCE = 2  # endpoints that live at a time
CANCELLED = 0.25  # of all deployments

Json = dict[str, Any]


@dataclass
class Asker:
    """Asks one installation, and asks again whatever got no answer."""

    stepway: Stepway
    others: Sequence[Stepway] = ()

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Idempotency-Key": uuid4().hex, **options.pop("headers", {})} if method != "GET" else {}
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._once(method, path, headers=headers, **options)
            # A first try may still be at work: its answer is the one that counts.
            if answer is not None and answer.status_code < 500 and "idempotency_in_flight" not in answer.text:
                return answer
            sys.stderr.write(
                f"{time.strftime('%X')} {method} {path}: {answer.text[:200] if answer is not None else None}\n"
            )
            assert time.monotonic() < deadline, f"{method} {path} got no answer: {answer.text if answer else None}"
            time.sleep(0.2)

    def _once(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        for asked in self.others or (self.stepway,):
            try:
                with httpx.Client(base_url=asked.url, timeout=20, trust_env=False) as client:
                    headers = {"Authorization": f"Bearer {self.stepway.key}", **options.get("headers", {})}
                    return client.request(method, path, **{**options, "headers": headers})
            except httpx.HTTPError:
                continue
        return None

    def post(self, path: str, body: Json) -> Json:
        answer = self.ask("POST", path, json=body)
        assert answer.status_code < 300, f"{path}: {answer.text}"
        given: Json = answer.json()
        return given

    def get(self, path: str) -> Json:
        answer = self.ask("GET", path)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        given: Json = answer.json()
        return given

    def ended(self, job_id: str) -> Json:
        deadline = time.monotonic() + PATIENCE
        while True:
            job = self.get(f"/jobs/{job_id}?wait=5")
            if job["state"] in FINAL:
                return job
            assert time.monotonic() < deadline, f"it does not end: {job}"

    def succeeded(self, job_id: str) -> Json:
        """Retried as long as it fails, as whoever wants it would do."""
        for _ in range(20):
            job = self.ended(job_id)
            if job["state"] == "succeeded":
                return job
            self.ask("POST", f"/jobs/{job_id}/retry")
        raise AssertionError(f"it does not succeed: {job}")

    def cancelled(self, job_id: str) -> bool:
        """Whether the cancel came in time. An undo that failed is retried."""
        self.ask("POST", f"/jobs/{job_id}/cancel")
        for _ in range(20):
            job = self.ended(job_id)
            if job["state"] != "cleanup_required":
                return bool(job["state"] == "cancelled")
            self.ask("POST", f"/jobs/{job_id}/retry")
        raise AssertionError(f"its undo does not succeed: {job}")

    def step(self, path: str, workflow: str | None, number: int, total: int, **fields: object) -> Json:
        begun = {"workflow_id": workflow} if workflow else {"workflow_total_steps": total}
        return self.post(path, {**begun, "step_number": number, **fields})


@dataclass
class Tally:
    """What was asked for, and what is to be there afterwards."""

    jobs: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)  # models
    gone: set[str] = field(default_factory=set)
    deploying: threading.Event = field(default_factory=threading.Event)  # the first has begun, or none ever will
    served: int = 0  # endpoints that answered


class Bot:
    """Brings models, scans, cancels, deletes: a seeded round of what it may do with each."""

    def __init__(self, asker: Asker, tally: Tally, seed: int, uri: Callable[[int], str]) -> None:
        self._asker = asker
        self._tally = tally
        self._random = random.Random(seed)
        self._uri = uri

    def round(self, number: int) -> None:
        importing = self._import(number)
        job = importing["job"]["id"]
        self._tally.jobs.add(job)
        if self._random.random() < 0.2:
            time.sleep(self._random.uniform(0.0, 1.0))
            if self._asker.cancelled(job):
                return
        self._asker.succeeded(job)
        model = self._asker.get(f"/workflows/{importing['workflow_id']}")["result"]["id"]
        scanning = self._asker.step("/models/security-scan", None, 1, 3, model_id=model, trigger_workflow=True)
        self._tally.jobs.add(scanning["job"]["id"])
        self._asker.succeeded(scanning["job"]["id"])
        if self._random.random() < 0.3:
            answer = self._asker.ask("DELETE", f"/models/{model}")
            assert answer.status_code in (200, 202, 204), answer.text
            self._tally.gone.add(model)
        else:
            self._tally.kept.add(model)

    def _import(self, number: int) -> Json:
        path = "/models/local-model-workflow"
        workflow = self._asker.step(path, None, 1, 6, modality="llm")["workflow_id"]
        self._asker.step(path, workflow, 2, 6, provider_type="url")
        details = {"name": f"m-{number}", "uri": self._uri(number), "icon": ICON}
        return self._asker.step(path, workflow, 3, 6, **details, trigger_workflow=True)


class Operator:
    """Deploys the model of `model_file` to a cluster that is registered for that and left again, or to this machine."""

    def __init__(self, asker: Asker, tally: Tally, seed: int, model_file: Path, cluster: Cluster | None) -> None:
        self._asker = asker
        self._tally = tally
        self._seed = seed
        self._model_file = model_file
        self._cluster = cluster

    def rounds(self, count: int) -> None:
        try:
            self._rounds(count)
        finally:
            self._tally.deploying.set()

    def _rounds(self, count: int) -> None:
        model = self._model()
        for number in range(count):
            site = self._this_machine() if self._cluster is None else self._registered(self._cluster)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                names = [f"e-{number}-{one}" for one in range(1 + number % AT_ONCE)]
                list(pool.map(partial(self._endpoint, model, site), names))
            if self._cluster is not None:
                self._done(self._asker.ask("DELETE", f"/clusters/{site}").json())

    def _model(self) -> str:
        path = "/models/local-model-workflow"
        workflow = self._asker.step(path, None, 1, 6, modality="llm")["workflow_id"]
        self._asker.step(path, workflow, 2, 6, provider_type="disk")
        details = {"name": "served", "uri": str(self._model_file), "icon": ICON}
        self._done(self._asker.step(path, workflow, 3, 6, **details, trigger_workflow=True)["job"])
        model = str(self._asker.get(f"/workflows/{workflow}")["result"]["id"])
        self._tally.kept.add(model)
        self._done(self._asker.step("/models/security-scan", None, 1, 3, model_id=model, trigger_workflow=True)["job"])
        return model

    def _this_machine(self) -> str:
        return next(str(one["id"]) for one in self._asker.get("/clusters")["data"] if one["kind"] == "local")

    def _registered(self, cluster: Cluster) -> str:
        fields = {"step_number": "1", "workflow_total_steps": "3", "name": "chaos", "trigger_workflow": "true"}
        file = ("kubeconfig.yaml", cluster.api.access_kubeconfig(), "application/yaml")
        form = {name: (None, value) for name, value in fields.items()} | {"configuration_file": file}
        answer = self._asker.ask("POST", "/clusters/clusters", files=form)
        assert answer.status_code == 200, answer.text
        job = answer.json()["job"]
        self._done(job)
        site = str(job["resource"]["id"])
        inspecting = self._asker.ask("POST", f"/clusters/{site}/inspect")
        assert inspecting.status_code in (200, 202), inspecting.text
        self._done(inspecting.json())
        return site

    def _endpoint(self, model: str, site: str, name: str) -> None:
        """Deployed, asked and deleted; or cancelled, now and then, where the cancel comes in time."""
        chance = random.Random(f"{self._seed} {name}")
        job = self._deploy(model, site, name)
        self._tally.deploying.set()
        self._tally.jobs.add(job["id"])
        if self._tally.served and chance.random() < CANCELLED:
            time.sleep(chance.uniform(0.0, 8.0))
            if self._asker.cancelled(job["id"]):
                return
        self._asker.succeeded(job["id"])
        endpoint = job["resource"]["id"]
        self._tally.served += 1
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 2}
        answer = self._asker.ask("POST", f"/endpoints/{endpoint}/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        self._done(self._asker.ask("DELETE", f"/endpoints/{endpoint}").json())

    def _deploy(self, model: str, site: str, name: str) -> Json:
        path = "/models/deploy-workflow"
        project = self._asker.get("/projects")["data"][0]["id"]
        workflow = self._asker.step(path, None, 1, 6, project_id=project, model_id=model)["workflow_id"]
        config = {"concurrent_requests": 1, "avg_sequence_length": 64, "avg_context_length": 64}
        self._asker.step(path, workflow, 3, 6, endpoint_name=name, deploy_config=config)
        begun: Json = self._asker.step(path, workflow, 5, 6, cluster_id=site, trigger_workflow=True)["job"]
        return begun

    def _done(self, job: Json) -> None:
        self._tally.jobs.add(job["id"])
        self._asker.succeeded(job["id"])

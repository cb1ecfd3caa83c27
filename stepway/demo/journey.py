"""What the demo does with the API: every request is one that anyone could make with curl."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stepway.cli.following import follow
from stepway.cli.output import Printer
from stepway.client import Client

MODEL = "SmolLM2 135M Instruct"
ENDPOINT = "smollm2"
ENDPOINT_OF_PODS = "smollm2-pods"
ICON = "icons/providers/huggingface.png"
PROMPT = "Explain in two sentences what a lighthouse is for."
CONFIG = {"concurrent_requests": 2, "avg_sequence_length": 128, "avg_context_length": 512}
Json = dict[str, Any]


class DemoFailed(Exception):
    """The demo cannot go on; the message is a sentence."""


class Journey:
    """The demo's way through the wizards. `since_start` tells the seconds since the demo began."""

    def __init__(self, client: Client, out: Printer, since_start: Callable[[], float]) -> None:
        self._client = client
        self._out = out
        self.since_start = since_start
        self.first_token: float | None = None

    # ---- the stations

    def add_model(self, file: Path) -> Json:
        """The model, added from disk by the wizard of six steps; the one of an earlier run when it is there."""
        known = self._named("/models", MODEL)
        if known is not None and known["state"] == "importing":
            known = self._after_its_job("/models", known)
        if known is not None and known["state"] == "active":
            self._out.say(f"  {MODEL} is here from an earlier run.", "dim")
            return known
        icons = [one["id"] for one in self._client.items("/icons")]
        result = self._wizard(
            "/models/local-model-workflow",
            6,
            [
                (1, {"modality": "llm"}),
                (2, {"provider_type": "disk"}),
                (3, {"name": MODEL, "uri": str(file), "author": "HuggingFaceTB", "icon": ICON if ICON in icons else icons[0],
                     "tags": [{"name": "demo", "color": "#66d1df"}]}),
                (4, {}),
            ],
        )  # fmt: skip
        model: Json = self._client.get(f"/models/{result['id']}")
        facts = model["metadata"]
        shown = [facts.get("architecture"), facts.get("quantization"), f"{(model['size'] or 0) / 1e6:.0f} MB"]
        self._out.say(f"  {', '.join(str(one) for one in shown if one)}, sha256 {str(model['digest'])[:23]}…", "dim")
        return model

    def scan(self, model: Json) -> None:
        result = self._wizard("/models/security-scan", 3, [(1, {"model_id": model["id"]})])
        self._out.say(f"  {result['status']}: {result['files_scanned']} files, {result['total_issues']} issues", "dim")

    def deploy(self, model: Json, cluster: Json | None = None) -> Json:
        """The endpoint, deployed to the cluster, else on this machine; the one of an earlier run when it serves this model."""
        project = self._project()
        name = ENDPOINT if cluster is None else ENDPOINT_OF_PODS
        known = self._named("/endpoints", name, project_id=project["id"])
        if known is not None and _serves(known, model, cluster):
            known = self._revived(known)
            if known is not None:
                self._out.say(f"  The endpoint {name} is here from an earlier run.", "dim")
                return known
        name = name if known is None else f"{name}-{int(time.time()):x}"
        template = next(self._client.items("/templates", search="chat"))
        run = Steps(self._client, "/models/deploy-workflow")
        run.take(1, {"project_id": project["id"], "model_id": model["id"]}, total=6)
        run.take(2, {"template_id": template["id"]})
        run.take(3, {"endpoint_name": name, "deploy_config": CONFIG})
        run.take(5, {"cluster_id": self._chosen(run.workflow_id, cluster)}, trigger=True)
        return self._endpoint(self._result(run)["id"])

    def _chosen(self, workflow_id: str, cluster: Json | None) -> str:
        """The cluster's id, else this machine's if it has room."""
        for one in self._client.items(f"/clusters/recommended/{workflow_id}"):
            here = one["cluster"]["kind"] == "local" and one["fits"]
            if here if cluster is None else one["cluster"]["id"] == cluster["id"]:
                self._out.say(f"  {one['cluster']['name']}: {' '.join(one['reasons'])}", "dim")
                return str(one["cluster"]["id"])
        if cluster is None:
            raise DemoFailed("This machine has no room for the model: about 1 GiB of free memory is needed.")
        return str(cluster["id"])

    def ask(self, endpoint: Json) -> None:
        """Prints the answer as it comes, and when the first piece of it came."""
        self._out.say(f"  > {PROMPT}")
        begun = time.monotonic()
        pieces = 0
        messages = [{"role": "user", "content": PROMPT}]
        for piece in self._client.chat(endpoint["id"], messages, max_tokens=96, temperature=0):
            if self.first_token is None:
                self.first_token = self.since_start()
                begun = time.monotonic()
            pieces += 1
            self._out.write(piece)
        self._out.write("\n")
        if not pieces:
            raise DemoFailed("The endpoint gave an empty answer.")
        self._out.say(f"  {pieces / max(time.monotonic() - begun, 0.001):.0f} tokens/s", "dim")

    def add_worker(self, endpoint: Json) -> None:
        if endpoint["replicas"]["desired"] > 1:
            self._out.say(f"  It has {endpoint['replicas']['desired']} workers from an earlier run.", "dim")
            return
        more = endpoint["concurrency"]["per_worker"]
        body = {"endpoint_id": endpoint["id"], "additional_concurrency": more}
        result = self._wizard("/endpoints/add-worker", 5, [(1, body), (3, {})])
        self._out.say(f"  {result['replicas']} workers, {result['concurrency']} requests at the same time", "dim")

    # ---- what they share

    def _wizard(self, path: str, total: int, steps: list[tuple[int, Json]]) -> Json:
        run = Steps(self._client, path)
        for number, fields in steps:
            run.take(number, fields, total=total, trigger=number == steps[-1][0])
        return self._result(run)

    def _result(self, run: "Steps") -> Json:
        """The triggered wizard's result, when its job has ended well."""
        follow(self._client, self._out, run.workflow["job"]["id"])
        workflow: Json = self._client.get(f"/workflows/{run.workflow_id}")
        if workflow["result"] is None:
            raise DemoFailed(f"The workflow is {workflow['status']}: {workflow['reason'] or workflow['message']}")
        return dict(workflow["result"])

    def _named(self, path: str, name: str, project_id: str | None = None) -> Json | None:
        found = self._client.items(path, search=name, project_id=project_id)
        return next((one for one in found if one["name"] == name and one["state"] not in ("failed", "deleted")), None)

    def _project(self) -> Json:
        projects = list(self._client.items("/projects"))
        return next((one for one in projects if one["name"] == "default"), projects[0])

    def _after_its_job(self, path: str, item: Json) -> Json:
        """An item whose job an earlier run has left: as it is after the job's end."""
        for job in self._client.items("/jobs", resource_id=item["id"]):
            if job["ended_at"] is None:
                follow(self._client, self._out, job["id"], check=False)
        found: Json = self._client.get(f"{path}/{item['id']}")
        return found

    def _endpoint(self, endpoint_id: str) -> Json:
        found: Json = self._client.get(f"/endpoints/{endpoint_id}")
        return found

    def _revived(self, endpoint: Json) -> Json | None:
        """An earlier run's endpoint once its workers serve again; None when they do not within half a minute."""
        if endpoint["state"] in ("pending", "deploying", "updating"):
            endpoint = self._after_its_job("/endpoints", endpoint)
        deadline = time.monotonic() + 30
        while endpoint["state"] not in ("failed", "deleting", "deleted") and time.monotonic() < deadline:
            if endpoint["state"] in ("running", "degraded") and endpoint["replicas"]["ready"]:
                return endpoint
            time.sleep(0.2)
            endpoint = self._endpoint(endpoint["id"])
        return None


def _serves(endpoint: Json, model: Json, cluster: Json | None) -> bool:
    return endpoint["model_id"] == model["id"] and (cluster is None or endpoint["cluster_id"] == cluster["id"])


class Steps:
    """One draft: the first step begins it, the others carry its id."""

    def __init__(self, client: Client, path: str) -> None:
        self._client = client
        self._path = path
        self.workflow: Json = {}

    @property
    def workflow_id(self) -> str:
        return str(self.workflow["workflow_id"])

    def take(self, number: int, fields: Json, *, total: int = 0, trigger: bool = False) -> None:
        where = {"workflow_id": self.workflow_id} if self.workflow else {"workflow_total_steps": total}
        body = {**where, "step_number": number, "trigger_workflow": trigger, **fields}
        self.workflow = self._client.post(self._path, body)

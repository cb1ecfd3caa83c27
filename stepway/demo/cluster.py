"""The demo's Kubernetes cluster: registered by the form, as with curl, and left with nothing of ours on it when asked.

`journey` deploys to it. A cluster that an earlier run has left registered is given the kubeconfig anew and used again.
"""

import time
from types import TracebackType
from typing import Any, Self

from stepway.cli.following import follow, reason
from stepway.cli.output import Printer
from stepway.cli.problems import JobFailed
from stepway.client import ApiError, Client, Unreachable

NAME = "demo"
READY_SECONDS = 60.0
Json = dict[str, Any]


class Guest:
    """Within the block the cluster is registered, as `cluster`. `leave` says whether all that is ours goes after it."""

    def __init__(self, client: Client, out: Printer, kubeconfig: bytes, *, leave: bool) -> None:
        self._client = client
        self._out = out
        self._kubeconfig = kubeconfig
        self._leave = leave
        self.cluster: Json = {}

    def __enter__(self) -> Self:
        known = self._again()
        self.cluster = self._available(known or self._registered())
        facts = self.cluster["facts"]
        nodes = facts["totals"]
        words = f"{nodes['nodes_usable']} of {nodes['nodes']} nodes usable"
        whence = ", here from an earlier run" if known else ""
        self._out.say(f"  {self.cluster['name']}: Kubernetes {facts['version']}, {words}{whence}", "dim")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._leave:
            self._out.say(
                "What runs in the cluster stays. The same command goes on with it; with --exit it removes all."
            )
            return
        self._out.say("Leaving the cluster", "bold")
        try:
            self._remove_all()
        except (ApiError, Unreachable, JobFailed) as failure:
            self._out.say("  Not all was removed from the cluster; the same command with --exit tries it again.", "red")
            if error is None:
                raise
            self._out.say(f"  {reason(failure.job)[2:] if isinstance(failure, JobFailed) else failure}", "red")
        else:
            self._out.say("  Nothing of the demo is left in the cluster.", "green")

    # ---- registering

    def _registered(self) -> str:
        taken = {one["name"] for one in self._client.items("/clusters")}
        name = NAME if NAME not in taken else f"{NAME}-{int(time.time()):x}"
        fields = {"workflow_total_steps": "3", "step_number": "1", "name": name, "trigger_workflow": "true"}
        files = {"configuration_file": ("kubeconfig.yaml", self._kubeconfig)}
        workflow = self._client.post_form("/clusters/clusters", fields, files)
        job = follow(self._client, self._out, workflow["job"]["id"], check=False)
        if job["state"] != "succeeded":
            self._client.delete(f"/clusters/{job['resource']['id']}")  # nothing was made there: it is only forgotten
            raise JobFailed(job)
        return str(job["resource"]["id"])

    def _again(self) -> str | None:
        """The cluster of an earlier run, if the kubeconfig leads to it."""
        text = self._kubeconfig.decode(errors="replace")
        for known in self._client.items("/clusters", kind="kubernetes"):
            if known["state"] in ("available", "unavailable"):
                asked = self._client.put(f"/clusters/{known['id']}/credentials", {"configuration_file": text})
                job = follow(self._client, self._out, asked["id"], check=False)
                if job["state"] == "succeeded":
                    return str(known["id"])
                if job["error"]["code"] != "cluster_is_another":
                    raise JobFailed(job)
        return None

    def _available(self, cluster_id: str) -> Json:
        """The cluster once it may be deployed to. One that was away while Stepway was off is looked at anew."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            found: Json = self._client.get(f"/clusters/{cluster_id}")
            if found["state"] == "available" or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    # ---- leaving

    def _remove_all(self) -> None:
        for endpoint in list(self._client.items("/endpoints")):
            if endpoint["cluster_id"] == self.cluster["id"]:
                self._remove(endpoint)
        job = self._client.delete(f"/clusters/{self.cluster['id']}")
        if job is not None:
            follow(self._client, self._out, job["id"])

    def _remove(self, endpoint: Json) -> None:
        for job in list(self._client.items("/jobs", resource_id=endpoint["id"])):
            if job["ended_at"] is None:
                if job["kind"] != "delete_endpoint":
                    self._client.post(f"/jobs/{job['id']}/cancel")
                follow(self._client, self._out, job["id"], check=False)
        if any(one["id"] == endpoint["id"] for one in self._client.items("/endpoints")):
            follow(self._client, self._out, self._client.delete(f"/endpoints/{endpoint['id']}")["id"])

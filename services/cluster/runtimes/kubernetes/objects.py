"""Objects of our namespace: get, list, server-side apply, delete, with the cluster's own words when it refuses.

Objects are plain JSON, as `manifests` makes them. `runtime` is the main caller; `KubernetesClient` does the requests.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.cluster.runtimes.kubernetes import faults
from services.cluster.runtimes.kubernetes.client import KubernetesClient
from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from shared.jobs.outcomes import Permanent, StepError

Json = dict[str, Any]

FIELD_MANAGER = "stepway"
_WORDS = 1000  # characters of the cluster's own sentence

GROUPS = {
    "ConfigMap": ("api/v1", "configmaps"),
    "Secret": ("api/v1", "secrets"),
    "Service": ("api/v1", "services"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "Pod": ("api/v1", "pods"),
    "Event": ("api/v1", "events"),
    "ResourceQuota": ("api/v1", "resourcequotas"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "StatefulSet": ("apis/apps/v1", "statefulsets"),
    "ReplicaSet": ("apis/apps/v1", "replicasets"),
    "Job": ("apis/batch/v1", "jobs"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "HorizontalPodAutoscaler": ("apis/autoscaling/v2", "horizontalpodautoscalers"),
    "Ingress": ("apis/networking.k8s.io/v1", "ingresses"),
    "HTTPRoute": ("apis/gateway.networking.k8s.io/v1", "httproutes"),
    "Gateway": ("apis/gateway.networking.k8s.io/v1", "gateways"),
}


class Refused(Permanent):
    """The cluster refuses a change of ours, for a reason of its own: quota, admission, an object that is not valid."""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(code, message)
        self.status = status


class Conflict(Exception):
    """The object has changed since it was read, or is there already."""


@dataclass(frozen=True, slots=True)
class Listed:
    items: list[Json]
    resource_version: str


class Objects:
    """Raises `Permanent` and `Retry` as the client does, `Refused` with the cluster's words, and `Conflict`."""

    def __init__(self, client: KubernetesClient, namespace: str = NAMESPACE) -> None:
        self.client = client
        self.namespace = namespace

    def path(self, kind: str, name: str = "", sub: str = "") -> str:
        root, plural = GROUPS[kind]
        return "/".join(part for part in (f"/{root}/namespaces/{self.namespace}/{plural}", name, sub) if part)

    async def get(self, kind: str, name: str) -> Json | None:
        return await self._call("GET", self.path(kind, name), absent=True)

    async def list(self, kind: str, selector: str = "", field_selector: str = "") -> Listed:
        """All of them; none where the cluster does not know the kind."""
        items: list[Json] = []
        token = ""
        while True:
            query = [("limit", str(self.client.limits.page))]
            query += [(name, value) for name, value in (("labelSelector", selector), ("continue", token)) if value]
            query += [("fieldSelector", field_selector)] if field_selector else []
            found = await self._call("GET", self.path(kind), query=query, absent=True)
            if found is None:
                return Listed([], "")
            items += [one for one in found.get("items") or () if isinstance(one, dict)]
            metadata = found.get("metadata") or {}
            token = metadata.get("continue") or ""
            if len(items) > self.client.limits.max_items:
                message = f"{self.client.server} lists more than {self.client.limits.max_items} objects."
                raise Permanent("cluster_answer_too_large", message)
            if not token or not found.get("items"):
                return Listed(items, str(metadata.get("resourceVersion") or ""))

    async def create(self, manifest: Json) -> Json:
        """Raises Conflict when it is there already."""
        query = [("fieldManager", FIELD_MANAGER)]
        return await self._call("POST", self.path(manifest["kind"]), query=query, body=manifest) or {}

    async def apply(self, manifest: Json, *, dry_run: bool = False) -> Json:
        """Server-side apply: the fields that are given become ours and as given, the others stay as they are."""
        query = [("fieldManager", FIELD_MANAGER), ("force", "true"), *([("dryRun", "All")] if dry_run else [])]
        path = self.path(manifest["kind"], manifest["metadata"]["name"])
        return await self._call("PATCH", path, query=query, body=manifest, patch="apply-patch+yaml") or {}

    async def merge(self, kind: str, name: str, change: Json) -> Json | None:
        """Change these fields. With a `resourceVersion` in `change`, raises Conflict if the object is a newer one."""
        query = [("fieldManager", FIELD_MANAGER)]
        path = self.path(kind, name)
        return await self._call("PATCH", path, query=query, body=change, patch="merge-patch+json", absent=True)

    async def delete(self, item: Json) -> None:
        """Delete this very object (its uid); what it owns goes with it. Fine if it is gone or another has its name."""
        metadata = item["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": metadata["uid"]},
        }
        try:
            await self._call("DELETE", self.path(item["kind"], metadata["name"]), body=body, absent=True)
        except Conflict:
            return

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Json | None = None,
        patch: str = "",
        absent: bool = False,
    ) -> Json | None:
        headers = {"Content-Type": f"application/{patch}"} if patch else None
        with self.client.network_faults():
            response = await self.client.open(method, path, query=query, body=body, headers=headers)
            data: bytes = await response.read()  # type: ignore[no-untyped-call]  # of the official client
        if absent and response.status == 404:
            return None
        answer = _parsed(data)
        if response.status >= 300:
            if response.status == 404 and answer is None:
                raise Refused("cluster_request_refused", f"The cluster has no {path.split('/')[-2]}.", 404)
            fault = self._fault(response.status, answer, response.headers.get("Retry-After"))
            if "/secrets/" in path and response.status in (400, 422) and isinstance(fault, Refused):
                raise Refused(fault.code, "The cluster refuses a Secret.", response.status)  # it may repeat values
            raise fault
        if answer is None:
            raise faults.not_kubernetes(self.client.server)
        return answer

    def _fault(self, status: int, answer: Json | None, retry_after: str | None) -> Exception:
        is_status = answer is not None and answer.get("kind") == "Status"
        if status == 409 and is_status:
            return Conflict()
        general: StepError = faults.of_status(
            status, self.client.server, is_kubernetes=is_status, retry_after=retry_after
        )
        words = printable((answer or {}).get("message"))
        if not words or not isinstance(general, Permanent) or status not in (400, 403, 404, 422):
            return general
        return Refused(_code(status, words, general.code), f"The cluster refuses it: {words}", status)


def printable(text: object, limit: int = _WORDS) -> str:
    """Text that a cluster chose, on one line, of a bounded length."""
    if not isinstance(text, str):
        return ""
    return "".join(char if char.isprintable() else " " for char in text[:limit]).strip()


def _code(status: int, words: str, general: str) -> str:
    if "exceeded quota" in words:
        return "cluster_quota_exceeded"
    if "admission webhook" in words or "violates PodSecurity" in words or "denied the request" in words:
        return "cluster_admission_denied"
    return general if status == 403 else "cluster_request_refused"


def _parsed(data: bytes) -> Json | None:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None

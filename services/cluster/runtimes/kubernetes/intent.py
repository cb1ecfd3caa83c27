"""What an endpoint should be, kept in the cluster itself: one ConfigMap per endpoint that owns all its other objects.

It is the fence (a change is conditional on the version that was read, and an older generation is refused), the memory
for healing (every object but the Secret, as it was applied), and the owner: once it is gone, the cluster removes what
a late caller may still have made.
"""

import json
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from services.cluster.runtimes.base import StaleGeneration
from services.cluster.runtimes.containers import Exposure
from services.cluster.runtimes.kubernetes import names, shape
from services.cluster.runtimes.kubernetes.objects import Conflict, Json, Objects
from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from shared.jobs.outcomes import Permanent, Retry

COMPONENT = "intent"
_KEY = "intent.json"
_TRIES = 20


class Reference(BaseModel):
    kind: str
    name: str


class Intent(BaseModel):
    """`manifests` are without owner references; the `replicas` of the sets that make workers are those of the intent.

    Memory (bytes) and GPUs are of one worker; `pods` is how many make one.
    """

    endpoint_id: str
    owner: str
    generation: int
    template_generation: int  # at which the present template of the pods came
    replicas: int
    serving: bool = True  # False: only its model is being brought, and there are no workers yet
    removed: bool = False
    job: str | None = None
    port: int
    memory_bytes: int
    gpus: int = 0
    pods: int = 1
    autoscaled: bool = False
    exposure: Exposure | None = None
    manifests: list[dict[str, Any]] = Field(default_factory=list)
    retired: list[Reference] = Field(default_factory=list)  # no longer wanted, perhaps still there

    @property
    def name(self) -> str:
        return names.base(self.endpoint_id)

    @property
    def template(self) -> str:
        """The digest that the pods of today carry."""
        found = template_of(self.leaders) if self.manifests else None
        return found or ""

    @property
    def leaders(self) -> Json:
        """The set whose pods serve."""
        return next(one for one in self.manifests if shape.is_set(one))

    def references(self) -> list[Reference]:
        return [Reference(kind=one["kind"], name=one["metadata"]["name"]) for one in self.manifests]

    def wanted(self) -> list[Json]:
        """The objects as they should be now, what makes pods last."""
        made = []
        for one in self.manifests:
            metadata = {**one["metadata"]}
            metadata["annotations"] = {**metadata.get("annotations", {}), names.GENERATION: str(self.generation)}
            changed = {**one, "metadata": metadata}
            if shape.is_set(one):
                template = one["spec"]["template"]
                annotations = {
                    **template["metadata"]["annotations"],
                    names.GENERATION: str(self.template_generation),
                }
                template = {**template, "metadata": {**template["metadata"], "annotations": annotations}}
                replicas = {} if self.autoscaled else {"replicas": self.replicas}
                changed["spec"] = {**one["spec"], **replicas, "template": template}
            made.append(changed)
        return sorted(made, key=shape.is_set)


class Stored(BaseModel):
    """An intent with what its ConfigMap is known by."""

    intent: Intent
    uid: str
    resource_version: str


class Unreadable(Permanent):
    """Somebody has changed the content of an intent."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "intent_unreadable",
            f"Somebody has changed the ConfigMap {name} in the cluster; delete it there, and it is made anew.",
        )


def template_of(made: Json) -> str | None:
    annotations = made.get("spec", {}).get("template", {}).get("metadata", {}).get("annotations") or {}
    found = annotations.get(names.TEMPLATE)
    return str(found) if found else None


def parse(config_map: Json) -> Stored | None:
    """None where the ConfigMap is no intent that can be read."""
    try:
        intent = Intent.model_validate_json((config_map.get("data") or {})[_KEY])
        metadata = config_map["metadata"]
        return Stored(intent=intent, uid=metadata["uid"], resource_version=metadata["resourceVersion"])
    except (KeyError, TypeError, ValidationError):
        return None


async def read(objects: Objects, owner: str, endpoint_id: str) -> Stored | None:
    """Raises Permanent when the name is somebody else's (`owned_by_another`), or the content is (Unreadable)."""
    name = names.base(endpoint_id)
    found = await objects.get("ConfigMap", name)
    if found is None:
        return None
    labels = found["metadata"].get("labels") or {}
    if labels.get(names.OWNER) != owner or labels.get(names.ENDPOINT) != endpoint_id:
        raise Permanent("owned_by_another", f"The ConfigMap {name} in the cluster is not this installation's.")
    stored = parse(found)
    if stored is None or stored.intent.endpoint_id != endpoint_id:
        raise Unreadable(name)
    return stored


async def write(objects: Objects, intent: Intent) -> Stored:
    """Make this the endpoint's intent. Raises StaleGeneration; Retry while the endpoint is being removed."""
    for _ in range(_TRIES):
        before = await read(objects, intent.owner, intent.endpoint_id)
        try:
            if before is None:
                return _stored(await objects.create(_config_map(intent)))
            return await _replace(objects, before, _continued(before.intent, intent))
        except Conflict:
            continue
    raise Retry("cluster_conflict", f"The endpoint {intent.endpoint_id} is being changed by several at once.")


async def change(objects: Objects, before: Stored, intent: Intent) -> Stored | None:
    """Replace what was read; None if it has changed meanwhile."""
    try:
        return await _replace(objects, before, intent)
    except Conflict:
        return None


def check_generation(intent: Intent, generation: int) -> None:
    if generation < intent.generation:
        raise StaleGeneration(intent.endpoint_id, generation, intent.generation)


def _continued(before: Intent, after: Intent) -> Intent:
    """The new intent, with what it takes over from the one before."""
    check_generation(before, after.generation)
    if before.removed:
        raise Retry("being_removed", f"The endpoint {before.endpoint_id} is being removed from the cluster.", after=2.0)
    kept = {(one.kind, one.name) for one in after.references()}
    earlier = [one for one in (*before.references(), *before.retired) if one.kind != "PersistentVolumeClaim"]
    retired = [one for one in earlier if (one.kind, one.name) not in kept]  # claims: see KubernetesRuntime.forget_model
    same = before.template == after.template
    return after.model_copy(
        update={
            "retired": retired,
            "template_generation": before.template_generation if same else after.generation,
        }
    )


async def _replace(objects: Objects, before: Stored, intent: Intent) -> Stored:
    change = _config_map(intent)
    change["metadata"] |= {"resourceVersion": before.resource_version, "uid": before.uid}
    found = await objects.merge("ConfigMap", intent.name, change)
    if found is None:
        raise Conflict
    return _stored(found)


def _stored(config_map: Json) -> Stored:
    stored = parse(config_map)
    if stored is None:
        raise Permanent("cluster_request_refused", "The cluster changed what was written to it.")
    return stored


def _config_map(intent: Intent) -> Json:
    labels = names.labels(intent.owner, intent.endpoint_id, COMPONENT)
    annotations = {names.GENERATION: str(intent.generation), **({names.JOB: intent.job} if intent.job else {})}
    text = json.dumps(intent.model_dump(mode="json", exclude_none=True), separators=(",", ":"))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": intent.name, "namespace": NAMESPACE, "labels": labels, "annotations": annotations},
        "data": {_KEY: text},
    }

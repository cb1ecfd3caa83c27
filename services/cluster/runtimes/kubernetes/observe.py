"""From what the cluster holds to what is told of an endpoint: pure functions over the objects of one look.

`watcher` keeps the objects, `runtime` lists them where no watcher runs; both hand them over as a `Look`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.cluster.runtimes.base import Observation, WorkerState, WorkerStatus
from services.cluster.runtimes.kubernetes import drift, names, reasons
from services.cluster.runtimes.kubernetes.intent import Intent, parse
from services.cluster.runtimes.kubernetes.reasons import Fault
from shared import clock

Json = dict[str, Any]

PROXIED = "/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy"


@dataclass(frozen=True, slots=True)
class Look:
    """One endpoint's objects by kind; a kind that was not looked at is absent. `logs` are last lines by pod."""

    objects: Mapping[str, Sequence[Json]]
    events: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    logs: Mapping[str, list[str]] = field(default_factory=dict)

    def of(self, kind: str) -> Sequence[Json]:
        return self.objects.get(kind, ())

    def intent(self) -> Intent | None:
        for one in self.of("ConfigMap"):
            if (one["metadata"].get("labels") or {}).get(names.COMPONENT) == "intent":
                stored = parse(one)
                if stored is not None:
                    return stored.intent
        return None

    def workers(self) -> list[Json]:
        """The pods of workers, in the order in which they were made."""
        pods = [one for one in self.of("Pod") if (one["metadata"].get("labels") or {}).get(names.COMPONENT) == "worker"]
        return sorted(pods, key=lambda pod: (str(pod["metadata"].get("creationTimestamp")), pod["metadata"]["name"]))


@dataclass(frozen=True, slots=True)
class Judged:
    """A worker with what is wrong with it; `current`: it is made as the intent wants it now."""

    status: WorkerStatus
    fault: Fault | None
    current: bool


def observation(look: Look, intent: Intent, server_url: str) -> Observation:
    fault = of_endpoint(look, intent)
    return Observation(
        endpoint_id=intent.endpoint_id,
        generation=intent.generation,
        replicas=_replicas(look, intent),
        workers=[one.status for one in workers(look, intent, server_url)],
        observed_at=clock.now(),
        reason=fault.reason if fault else None,
        message=fault.message if fault else None,
    )


def _replicas(look: Look, intent: Intent) -> int:
    """That are wanted: by us, or by the cluster itself where it was asked to scale."""
    found = [(one.get("spec") or {}).get("replicas") for one in look.of("Deployment")] if intent.autoscaled else []
    return found[0] if found and isinstance(found[0], int) else intent.replicas


def of_endpoint(look: Look, intent: Intent) -> Fault | None:
    """What is wrong with the endpoint as a whole: objects gone or changed, pods that are not created."""
    if intent.removed or not intent.serving:
        return None
    gone = [
        f"the {one.kind} {one.name}"
        for one in intent.references()
        if one.kind in look.objects and not any(there["metadata"]["name"] == one.name for there in look.of(one.kind))
    ]
    if "Secret" in look.objects and not look.of("Secret"):
        gone.append(f"the Secret {intent.name}")
    if gone:
        return Fault("removed_by_others", f"Somebody deleted {', '.join(gone)}.")
    for wanted in intent.wanted():
        found = [one for one in look.of(wanted["kind"]) if one["metadata"]["name"] == wanted["metadata"]["name"]]
        changed = drift.differences(wanted, found[0]) if found else []
        if changed and _is_settled(wanted, found[0]):
            name = f"{wanted['kind']} {wanted['metadata']['name']}"
            return Fault("changed_by_others", f"Somebody changed the {name}: {', '.join(changed)}.")
    for deployment in look.of("Deployment"):
        fault = reasons.of_deployment(deployment)
        if fault is not None:
            return fault
    return None


def workers(look: Look, intent: Intent, server_url: str) -> list[Judged]:
    found = []
    for ordinal, pod in enumerate(look.workers()):
        name = pod["metadata"]["name"]
        fault = reasons.of_pod(pod, look.events.get(name, ()))
        found.append(_judged(pod, ordinal, intent, fault, server_url, look.logs.get(name, [])))
    return found


def template_of(pod: Json) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(names.TEMPLATE) or "")


def _is_settled(wanted: Json, found: Json) -> bool:
    """Whether the object has had its turn: one of an older generation of ours is about to be replaced."""
    annotations = found["metadata"].get("annotations") or {}
    return bool(annotations.get(names.GENERATION) == wanted["metadata"]["annotations"][names.GENERATION])


def _judged(
    pod: Json, ordinal: int, intent: Intent, fault: Fault | None, server_url: str, last_log: list[str]
) -> Judged:
    metadata, spec = pod["metadata"], pod.get("spec") or {}
    server = reasons.server_status(pod)
    running = (server.get("state") or {}).get("running") or {}
    annotations = metadata.get("annotations") or {}
    state = _state(pod, server, fault)
    reach: dict[str, Any] = {}
    if running and not metadata.get("deletionTimestamp"):
        reach = _reach(metadata["name"], intent, server_url)
    status = WorkerStatus(
        id=metadata["name"],
        ordinal=ordinal,
        generation=_int(annotations.get(names.GENERATION)),
        state=state,
        port=intent.port,
        node=spec.get("nodeName"),
        gpus=intent.gpus,
        memory_bytes=intent.memory_bytes,
        started_at=reasons.moment(running.get("startedAt")),
        ready_at=_ready_since(pod),
        restarts=_int(server.get("restartCount")),
        reason=fault.reason if fault else None,
        message=fault.message if fault else None,
        exit_code=fault.exit_code if fault else None,
        last_log=last_log,
        **reach,
    )
    return Judged(status, fault, template_of(pod) == intent.template)


def _state(pod: Json, server: Json, fault: Fault | None) -> WorkerState:
    if pod["metadata"].get("deletionTimestamp"):
        return "stopping"
    if fault is not None and fault.state in ("exited", "stopping", "crash_loop"):
        return fault.state
    if reasons.is_ready(pod):
        return "ready"
    if fault is not None:
        return fault.state
    if _ready_since(pod) is None and server.get("started") is True:
        return "unhealthy" if _was_ready(pod) else "starting"
    return "starting"


def _was_ready(pod: Json) -> bool:
    """Not ready now, and the condition changed after the start: it had been ready."""
    started = (reasons.server_status(pod).get("state") or {}).get("running") or {}
    for one in (pod.get("status") or {}).get("conditions") or ():
        if one.get("type") == "ContainersReady" and one.get("status") == "False":
            return str(one.get("lastTransitionTime") or "") > str(started.get("startedAt") or "~")
    return False


def _reach(pod: str, intent: Intent, server_url: str) -> dict[str, Any]:
    if intent.exposure is not None:
        return {"url": intent.exposure.url.rstrip("/"), "via": "ingress", "host": intent.exposure.host}
    path = PROXIED.format(namespace="stepway", pod=pod, port=intent.port)
    return {"url": f"{server_url.rstrip('/')}{path}", "via": "api_server"}


def _ready_since(pod: Json) -> Any:
    for one in (pod.get("status") or {}).get("conditions") or ():
        if one.get("type") == "Ready" and one.get("status") == "True":
            return reasons.moment(one.get("lastTransitionTime"))
    return None


def _int(value: object) -> int:
    try:
        return max(0, int(str(value)))
    except ValueError:
        return 0

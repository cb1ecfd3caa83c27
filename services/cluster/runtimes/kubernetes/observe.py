"""From what the cluster holds to what is told of an endpoint: pure functions over the objects of one look.

`watcher` keeps the objects, `runtime` lists them where no watcher runs; both hand them over as a `Look`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.cluster.runtimes.base import Observation, WorkerState, WorkerStatus
from services.cluster.runtimes.kubernetes import drift, names, reasons, shape
from services.cluster.runtimes.kubernetes.intent import Intent, parse
from services.cluster.runtimes.kubernetes.reasons import Fault
from services.cluster.runtimes.kubernetes.shape import Worker
from shared import clock

Json = dict[str, Any]

# A worker of several pods is told by the first of these that one of them is in
_WORST: tuple[WorkerState, ...] = (
    "stopping", "exited", "crash_loop", "restarting", "unhealthy", "starting", "ready",
)  # fmt: skip
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

    def pods(self) -> list[Json]:
        """The pods of workers."""
        return [one for one in self.of("Pod") if (one["metadata"].get("labels") or {}).get(names.COMPONENT) == "worker"]


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
    for kind in shape.SETS:
        for one in look.of(kind):
            fault = reasons.of_set(one, look.events.get(one["metadata"]["name"], ()))
            if fault is not None:
                return fault
    return None


def workers(look: Look, intent: Intent, server_url: str) -> list[Judged]:
    found = shape.workers(look.pods(), intent.name)
    return [_judged(look, worker, ordinal, intent, server_url) for ordinal, worker in enumerate(found)]


def template_of(pod: Json) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(names.TEMPLATE) or "")


def _is_settled(wanted: Json, found: Json) -> bool:
    """Whether the object has had its turn: one of an older generation of ours is about to be replaced."""
    annotations = found["metadata"].get("annotations") or {}
    return bool(annotations.get(names.GENERATION) == wanted["metadata"]["annotations"][names.GENERATION])


@dataclass(frozen=True, slots=True)
class _Member:
    """A pod of a worker."""

    pod: Json
    fault: Fault | None
    state: WorkerState


def _judged(look: Look, worker: Worker, ordinal: int, intent: Intent, server_url: str) -> Judged:
    """A worker is as the worst of its pods, and is ready when all of them are."""
    members = [_member(pod, look) for pod in worker.pods]
    worst = min(members, key=lambda one: (_WORST.index(one.state), one.fault is None))
    complete = len(members) == intent.pods
    leader = worker.leader or {"metadata": {}}
    running = (reasons.server_status(leader).get("state") or {}).get("running") or {}
    fault, name = worst.fault, worst.pod["metadata"]["name"]
    if fault is not None and name != worker.name:
        fault = replace(fault, message=f"{name}: {fault.message}")
    reach: dict[str, Any] = {}
    if running and not leader["metadata"].get("deletionTimestamp"):
        reach = _reach(worker.name, intent, server_url)
    since = [_ready_since(one.pod) for one in members]
    nodes = [node for one in members if (node := (one.pod.get("spec") or {}).get("nodeName"))]
    status = WorkerStatus(
        id=worker.name,
        ordinal=ordinal,
        generation=min(_int((one.pod["metadata"].get("annotations") or {}).get(names.GENERATION)) for one in members),
        state=worst.state if complete or worst.state != "ready" else "starting",
        port=intent.port,
        node=", ".join(dict.fromkeys(nodes)) or None,
        gpus=intent.gpus,
        memory_bytes=intent.memory_bytes,
        started_at=reasons.moment(running.get("startedAt")),
        ready_at=max(since) if complete and None not in since else None,
        restarts=max(_int(reasons.server_status(one.pod).get("restartCount")) for one in members),
        reason=fault.reason if fault else None,
        message=fault.message if fault else None,
        exit_code=fault.exit_code if fault else None,
        last_log=look.logs.get(name, []),
        **reach,
    )
    return Judged(status, fault, all(template_of(one.pod) == intent.template for one in members))


def _member(pod: Json, look: Look) -> _Member:
    fault = reasons.of_pod(pod, look.events.get(pod["metadata"]["name"], ()))
    return _Member(pod, fault, _state(pod, reasons.server_status(pod), fault))


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

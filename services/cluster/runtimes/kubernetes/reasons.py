"""Why a pod is not ready, or why there is none, in words: pure functions over what the cluster says.

`observe` asks for every pod, `waiting` decides by `final` whether to go on waiting.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from services.cluster.runtimes.base import Reason, WorkerState
from services.cluster.runtimes.kubernetes.objects import printable
from services.cluster.runtimes.kubernetes.quantities import whole

Json = dict[str, Any]

CRASH_LOOP_AFTER = 2  # restarts after which another try is not expected to help
LAST_LINES = 20
_UNSCHEDULABLE = re.compile(
    r"^\d+/(\d+) nodes are available: (.*?)(?:[.,] (?:no new claims|preemption).*|\.? ?)$", re.DOTALL
)
_PART = re.compile(r"(\d+) (.+)", re.DOTALL)
_NOT_FOUND = re.compile(r"not found|does not exist|manifest unknown|name unknown|no such image|\b404\b", re.IGNORECASE)
_DENIED = re.compile(
    r"unauthorized|denied|forbidden|authentication required|no basic auth|\b40[13]\b|pull access", re.IGNORECASE
)
_RESOURCES = {"memory": "memory", "cpu": "CPU", "ephemeral-storage": "disk space", "pods": "places for pods"}
_SIGNALS = {6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}
_PULLING = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
_WENT_ON = frozenset({"Pulling", "Pulled", "Created", "Started", "Killing"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"})


@dataclass(frozen=True, slots=True)
class Fault:
    """What keeps a worker from being ready. `final`: waiting longer is not expected to help.

    `code` names it as a job's failure; `grace` is how many seconds it may last before it counts, where it is not final.
    """

    reason: Reason
    message: str
    state: WorkerState = "starting"
    final: bool = False
    grace: float | None = None
    exit_code: int | None = None
    wants_log: bool = False
    previous_log: bool = False
    container: str | None = None
    log: list[str] = field(default_factory=list)

    @property
    def code(self) -> str:
        return f"worker_{self.reason}"


def of_pod(pod: Json, events: Sequence[Json] = ()) -> Fault | None:
    """What is wrong with one pod, or None. `events` are those of this pod."""
    status = _mapping(pod, "status")
    return (
        _of_phase(pod, status)
        or _of_node(pod, status)
        or _of_scheduling(status)
        or _of_containers(pod, status)
        or _of_events(pod, status, events)
    )


def of_set(made: Json, events: Sequence[Json] = ()) -> Fault | None:
    """Why there are fewer pods than wanted: the cluster refuses to create them, or has given up.

    A Deployment says it by its conditions, a StatefulSet only by `events`, and only while pods are missing.
    """
    if lacks_pods(made):
        told = [
            one for one in sorted(events, key=event_time) if one.get("reason") in ("FailedCreate", "SuccessfulCreate")
        ]
        refused = bool(told) and told[-1]["reason"] == "FailedCreate"
        return of_refusal(printable(told[-1].get("message"))) if refused else None
    for condition in _listed(_mapping(made, "status"), "conditions"):
        message = printable(condition.get("message"))
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return of_refusal(message)
        if condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            seconds = _mapping(made, "spec").get("progressDeadlineSeconds")
            text = f"The cluster has seen no progress within {seconds} seconds and gave up waiting."
            return Fault("deadline", text, final=True)
    return None


def lacks_pods(made: Json) -> bool:
    """Whether a StatefulSet has not made all its pods."""
    wanted = _count(_mapping(made, "spec").get("replicas"))
    return made.get("kind") == "StatefulSet" and _count(_mapping(made, "status").get("replicas")) < wanted


def of_refusal(message: str) -> Fault:
    """Why a pod was not created, from the cluster's own sentence."""
    if "exceeded quota" in message:
        return Fault("quota_exceeded", _quota(message), grace=15)
    if "admission webhook" in message or "violates PodSecurity" in message or "denied the request" in message:
        return Fault("admission_denied", f"The cluster's admission policy refuses the pod: {_tail(message)}", grace=15)
    return Fault("not_created", f"The cluster does not create the pod: {_tail(message)}", grace=15)


def is_ready(pod: Json) -> bool:
    conditions = _listed(_mapping(pod, "status"), "conditions")
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def server_status(pod: Json, name: str = "server") -> Json:
    statuses = _listed(_mapping(pod, "status"), "containerStatuses")
    return next((one for one in statuses if one.get("name") == name), {})


# --- one source after the other


def _of_phase(pod: Json, status: Json) -> Fault | None:
    if status.get("reason") == "Evicted":
        return Fault("evicted", f"The node evicted the pod: {printable(status.get('message'))}", "exited")
    if str(status.get("reason")) in ("NodeLost", "NodeAffinity", "NodeShutdown", "Terminated", "Shutdown"):
        return Fault("node_lost", f"The node gave the pod up: {printable(status.get('message'))}", "exited")
    if status.get("reason") == "DeadlineExceeded":
        return Fault("deadline", "The pod ran longer than it may.", "exited", final=True)
    if str(status.get("reason") or "").startswith(("OutOf", "UnexpectedAdmissionError", "Preempting")):
        return Fault("unschedulable", f"Its node refused the pod: {printable(status.get('message'))}", "exited")
    return None


def _of_node(pod: Json, status: Json) -> Fault | None:
    node = _mapping(pod, "spec").get("nodeName")
    for condition in _listed(status, "conditions"):
        if condition.get("type") == "Ready" and condition.get("reason") == "NodeLost":
            return Fault("node_lost", f"The node {node} does not answer.", "unhealthy")
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            text = f"The cluster takes the pod off its node: {printable(condition.get('message'))}"
            return Fault("evicted", text, "stopping")
    return None


def _of_scheduling(status: Json) -> Fault | None:
    for condition in _listed(status, "conditions"):
        if condition.get("type") != "PodScheduled" or condition.get("status") != "False":
            continue
        message = printable(condition.get("message"))
        if "persistentvolumeclaim" in message.lower():
            return Fault("claim_not_bound", f"Its volume is not there: {_sentence(message)}", grace=60)
        if condition.get("reason") == "Unschedulable":
            return Fault("unschedulable", unschedulable(message), grace=60)
    return None


def _of_containers(pod: Json, status: Json) -> Fault | None:
    statuses = [*_listed(status, "initContainerStatuses"), *_listed(status, "containerStatuses")]
    for one in statuses:
        fault = _of_container(pod, one)
        if fault is not None:
            return fault
    return None


def _of_container(pod: Json, one: Json) -> Fault | None:
    state, name = _mapping(one, "state"), str(one.get("name"))
    waiting, terminated = _mapping(state, "waiting"), _mapping(state, "terminated")
    why, message = str(waiting.get("reason") or ""), printable(waiting.get("message"))
    if why in _PULLING:
        return _pull(printable(one.get("image"), 255), why, message)
    if why in _CONFIG:
        return Fault("cannot_start", f"The container cannot be started: {_sentence(message)}", final=_is_wrong(message))
    last = _mapping(_mapping(one, "lastState"), "terminated")
    ended = terminated or last
    if not ended or (one.get("ready") is True and not terminated):
        return None
    if terminated and terminated.get("exitCode") == 0 and name != "server":
        return None
    running = bool(_mapping(state, "running"))
    return _ended(pod, one, ended, running=running, previous=not terminated)


def _ended(pod: Json, one: Json, ended: Json, *, running: bool, previous: bool) -> Fault:
    restarts, code, name = _count(one.get("restartCount")), _number(ended.get("exitCode")), str(one.get("name"))
    loop = restarts >= CRASH_LOOP_AFTER
    state: WorkerState = "crash_loop" if loop and not running else "restarting"
    common: dict[str, Any] = {
        "exit_code": code, "wants_log": True, "previous_log": previous, "container": name, "state": state,
    }  # fmt: skip
    if ended.get("reason") == "OOMKilled":
        limit = _limit(pod, name)
        text = f"Out of memory: it needs more than its limit of {limit}." if limit else "Out of memory."
        return Fault("out_of_memory", text, final=True, **common)
    said = printable(ended.get("message"), 600)
    if name == "loader":
        text = said or f"The loader ended with exit code {code}."
        final = code in (3, 4, 5) or loop  # revoked, wrong bytes, no room
        return Fault("load_failed", f"The model's files could not be brought: {text}", final=final, **common)
    how = f"signal {_SIGNALS.get(code - 128, code - 128)}" if code and code > 128 else f"exit code {code}"
    again = f" It has been restarted {_times(restarts)}." if restarts else ""
    more = f" It said: {said}" if said else ""
    reason: Reason = "signal" if code and code > 128 else "exited"
    return Fault(reason, f"The server ended with {how}.{again}{more}", final=loop, **common)


def _of_events(pod: Json, status: Json, events: Sequence[Json]) -> Fault | None:
    if is_ready(pod):
        return None
    latest = sorted(events, key=event_time, reverse=True)
    for event in latest:
        why, message = str(event.get("reason")), printable(event.get("message"))
        if why in _WENT_ON:  # what was before has passed
            return None
        if event.get("type") != "Warning":
            continue
        if why in ("FailedMount", "FailedAttachVolume"):
            return Fault("mount_failed", f"A volume could not be mounted: {_sentence(message)}", grace=90)
        if why == "FailedCreatePodSandBox":
            return Fault("cannot_start", f"The node cannot start the pod: {_sentence(message)}", grace=60)
        if why == "Unhealthy" and _mapping(_mapping(server_status(pod), "state"), "running"):
            return _probe(pod, message)
    return None


def _probe(pod: Json, message: str) -> Fault | None:
    """A server that is still loading fails its startup probe: no fault until it has lasted."""
    kind, _, why = message.partition(" probe failed: ")
    if kind == "Startup" or not why:
        return None
    restarts = _count(server_status(pod).get("restartCount"))
    text = f"It does not answer as a healthy server does ({kind.lower()} probe: {_sentence(why)})"
    return Fault("unhealthy", text, "unhealthy", final=restarts >= CRASH_LOOP_AFTER)


# --- wording


def unschedulable(message: str) -> str:
    """`0/3 nodes are available: 2 Insufficient memory, 1 node(s) had untolerated taint {…}.` as a sentence."""
    match = _UNSCHEDULABLE.match(message)
    if match is None:
        return f"No node can take the pod: {_sentence(message)}"
    parts = [_PART.fullmatch(part.strip()) for part in re.split(r", (?=\d+ )", match[2])]
    said = [_lack(int(part[1]), part[2]) for part in parts if part is not None]
    if not said:
        return f"No node can take the pod: {_sentence(message)}"
    none = "The one node cannot" if match[1] == "1" else f"None of the {match[1]} nodes can"
    return f"{none} take the pod: {'; '.join(said)}."


def _lack(count: int, what: str) -> str:
    if what.startswith("Insufficient "):
        resource = what.removeprefix("Insufficient ")
        verb = "has" if count == 1 else "have"
        return f"{_plural(count, 'node')} {verb} too little free {_RESOURCES.get(resource, resource)}"
    if "untolerated taint" in what:
        return f"{_plural(count, 'node')} {'is' if count == 1 else 'are'} reserved for others ({_braces(what)})"
    if "node affinity" in what or "node selector" in what:
        return f"{_plural(count, 'node')} {'is' if count == 1 else 'are'} not of the kind that is asked for"
    if "were unschedulable" in what:
        return f"{_plural(count, 'node')} {'is' if count == 1 else 'are'} cordoned"
    return f"{_plural(count, 'node')}: {what.removeprefix('node(s) ')}"


def _pull(image: str, why: str, message: str) -> Fault:
    if why == "InvalidImageName":
        return Fault("no_image", f"{image} is no valid image name.", final=True)
    if why == "ErrImageNeverPull":
        return Fault("no_image", f"The image {image} is not on the node, and may not be pulled.", final=True)
    if _DENIED.search(message) and not re.search(r"may require|or may", message):
        return Fault("pull_denied", f"The registry does not give the image {image} to the cluster.", final=True)
    if _NOT_FOUND.search(message):
        return Fault("no_image", f"There is no image {image}.", final=True)
    if _DENIED.search(message):
        text = f"There is no image {image}, or the registry does not give it to the cluster."
        return Fault("pull_denied", text, final=True)
    return Fault("pull_failed", f"The image {image} could not be pulled: {_tail(message)}", grace=120)


def _quota(message: str) -> str:
    match = re.search(r"exceeded quota: ([^,]+), requested: (.+?), used: (.+?), limited: (.+?)\"?$", message)
    if match is None:
        return f"The namespace's quota is used up: {_tail(message)}"
    name, requested, used, limited = match.groups()
    return f"The quota {name} is used up: {requested} more is asked for, {used} is used, {limited} is the limit."


def _limit(pod: Json, container: str) -> str | None:
    spec = _mapping(pod, "spec")
    for one in [*_listed(spec, "containers"), *_listed(spec, "initContainers")]:
        if one.get("name") == container:
            size = whole(_mapping(_mapping(one, "resources"), "limits").get("memory"))
            return f"{size / 2**20:.0f} MiB" if size else None
    return None


def _is_wrong(message: str) -> bool:
    """A container that could never start, however often it is tried."""
    return "executable file not found" in message or "runAsNonRoot" in message or "no such file" in message


def event_time(event: Json) -> str:
    return str(
        event.get("lastTimestamp") or event.get("eventTime") or _mapping(event, "metadata").get("creationTimestamp")
    )


def moment(text: object) -> datetime | None:
    """A time of the cluster's, in UTC; one without a zone is taken to be in it."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.utcoffset() is None else found.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter at both ends of the calendar
        return None


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return f"{text}." if text else "no reason was given."


def _tail(message: str) -> str:
    """Without what Kubernetes puts before the reason: `pods "x" is forbidden: `."""
    return _sentence(re.sub(r"^.*?is forbidden: ", "", message))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _braces(text: str) -> str:
    match = re.search(r"\{([^}]*)\}", text)
    return match[1].rstrip(": ") if match else "a taint"


def _mapping(item: Json, key: str) -> Json:
    value = item.get(key)
    return value if isinstance(value, dict) else {}


def _listed(item: Json, key: str) -> list[Json]:
    value = item.get(key)
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None

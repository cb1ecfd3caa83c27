"""Why a pod is not ready, from what clusters really say."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cluster.runtimes.kubernetes import inspect, reasons
from services.cluster.runtimes.kubernetes.reasons import Fault
from shared import clock

OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def pod(status: dict[str, Any] | None = None, **container: Any) -> dict[str, Any]:
    server = {"name": "server", "image": "img:1", "restartCount": 0, "ready": False, **container}
    return {
        "metadata": {"name": "p"},
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "server", "resources": {"limits": {"memory": "512Mi"}}}],
        },
        "status": {"containerStatuses": [server] if container else [], **(status or {})},
    }


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return pod(state={"waiting": {"reason": reason, "message": message}}, **more)


def ended(code: int, reason: str = "Error", message: str = "", **more: Any) -> dict[str, Any]:
    last = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    return pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=last, **more)


def unscheduled(message: str) -> dict[str, Any]:
    return pod(
        {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}
    )


def loader(code: int, message: str) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": "Error", "message": message}}
    return pod({"initContainerStatuses": [{"name": "loader", "restartCount": 0, "state": state}]})


CASES: list[tuple[dict[str, Any], str, bool, str]] = [
    (
        waiting("ImagePullBackOff", 'Back-off pulling image "img:1": ErrImagePull: img:1: not found'),
        "no_image", True, "There is no image img:1.",
    ),
    (waiting("InvalidImageName"), "no_image", True, "img:1 is no valid image name."),
    (
        waiting("ErrImagePull", "failed to pull: unexpected status: 401 Unauthorized"),
        "pull_denied", True, "The registry does not give the image img:1 to the cluster.",
    ),
    (
        waiting("ErrImagePull", "pull access denied, repository does not exist or may require authorization"),
        "no_image", True, "There is no image img:1.",
    ),
    (
        waiting("ErrImagePull", "dial tcp: lookup registry: i/o timeout"),
        "pull_failed", False, "The image img:1 could not be pulled: dial tcp: lookup registry: i/o timeout.",
    ),
    (
        ended(137, "OOMKilled", restartCount=1),
        "out_of_memory", True, "Out of memory: it needs more than its limit of 512 MiB.",
    ),
    (ended(1), "exited", False, "The server ended with exit code 1."),
    (
        ended(2, message="no such model", restartCount=5),
        "exited", True, "The server ended with exit code 2. It has been restarted 5 times. It said: no such model",
    ),
    (ended(139, restartCount=1), "signal", False, "The server ended with signal SIGSEGV. It has been restarted once."),
    (
        unscheduled("0/3 nodes are available: 1 node(s) had untolerated taint {gpu: }, 2 Insufficient memory. "
                    "preemption: 0/3 nodes are available: 3 No preemption victims found."),
        "unschedulable", False,
        "None of the 3 nodes can take the pod: 1 node is reserved for others (gpu); 2 nodes have too little free memory.",
    ),
    (
        unscheduled(
            "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are "
            "available: 1 Preemption is not helpful for scheduling."
        ),
        "unschedulable",
        False,
        "The one node cannot take the pod: 1 node has too little free CPU.",
    ),
    (
        unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),
        "unschedulable", False, "The one node cannot take the pod: 1 node has too little free nvidia.com/gpu.",
    ),
    (
        unscheduled("0/2 nodes are available: 1 node(s) were unschedulable, 1 node(s) didn't match Pod's node "
                    "affinity/selector. preemption: none"),
        "unschedulable", False,
        "None of the 2 nodes can take the pod: 1 node is cordoned; 1 node is not of the kind that is asked for.",
    ),
    (unscheduled("no nodes available to schedule pods"), "unschedulable", False, "No node can take the pod: no nodes"),
    (
        unscheduled("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
        "claim_not_bound", False, "Its volume is not there: 0/1 nodes are available: pod has unbound immediate",
    ),
    (
        waiting("CreateContainerConfigError", 'secret "x" not found'),
        "cannot_start", False, 'The container cannot be started: secret "x" not found.',
    ),
    (
        waiting("CreateContainerError", "container has runAsNonRoot and image will run as root"),
        "cannot_start", True, "The container cannot be started: container has runAsNonRoot",
    ),
    (
        loader(3, "The platform refuses the model's files (status 401)."),
        "load_failed", True, "The model's files could not be brought: The platform refuses",
    ),
    (loader(6, "No byte came for 600 seconds."), "load_failed", False, "The model's files could not be brought: No byte"),
    (
        pod({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
        "evicted", False, "The node evicted the pod: The node was low on resource: memory.",
    ),
    (pod({"reason": "NodeLost", "message": "Node n1 is gone"}), "node_lost", False, "The node gave the pod up: Node n1"),
    (
        pod({"conditions": [{"type": "DisruptionTarget", "status": "True", "message": "Taint manager: deleting"}]}),
        "evicted", False, "The cluster takes the pod off its node: Taint manager",
    ),
    (pod({"phase": "Failed", "reason": "DeadlineExceeded"}), "deadline", True, "The pod ran longer than it may."),
    (
        pod({"phase": "Failed", "reason": "OutOfcpu", "message": "Pod was rejected"}),
        "unschedulable", False, "Its node refused the pod: Pod was rejected",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "reason", "final", "words"), CASES, ids=[f"{one[1]}-{n}" for n, one in enumerate(CASES)]
)
def test_of_a_pod(item: dict[str, Any], reason: str, final: bool, words: str) -> None:
    fault = reasons.of_pod(item)
    assert fault is not None
    assert (fault.reason, fault.final) == (reason, final)
    assert fault.message.startswith(words)


def event(why: str, message: str = "", at: str = NEW, kind: str = "Warning") -> dict[str, Any]:
    return {"type": kind, "reason": why, "message": message, "lastTimestamp": at}


RUNNING = pod(state={"running": {"startedAt": OLD}})


@pytest.mark.parametrize(
    ("item", "events", "reason"),
    [
        (waiting("ContainerCreating"), [event("FailedMount", "no volume")], "mount_failed"),
        (waiting("ContainerCreating"), [event("FailedMount", at=OLD), event("Pulling", kind="Normal")], None),
        (waiting("ContainerCreating"), [event("FailedCreatePodSandBox", "no address left")], "cannot_start"),
        (RUNNING, [event("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")], "unhealthy"),
        (RUNNING, [event("Unhealthy", "Startup probe failed: connection refused")], None),  # it is still loading
        (RUNNING, [], None),
        (waiting("ContainerCreating"), [], None),
        (waiting("PodInitializing"), [], None),
    ],
)
def test_of_events(item: dict[str, Any], events: list[dict[str, Any]], reason: str | None) -> None:
    fault = reasons.of_pod(item, events)
    assert (fault.reason if fault else None) == reason


def test_a_server_that_is_well_again_has_no_fault() -> None:
    last = {"terminated": {"exitCode": 1, "reason": "Error"}}
    well = pod(
        {"conditions": [{"type": "Ready", "status": "True"}]},
        state={"running": {}}, lastState=last, restartCount=2, ready=True,
    )  # fmt: skip
    assert reasons.of_pod(well) is None


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        (
            'pods "p" is forbidden: exceeded quota: small, requested: memory=1Gi, used: memory=3Gi, limited: memory=3Gi',
            "quota_exceeded", "The quota small is used up: memory=1Gi more is asked for, memory=3Gi is used, memory=3Gi",
        ),
        (
            'admission webhook "policy.example" denied the request: images must be signed',
            "admission_denied", "The cluster's admission policy refuses the pod: admission webhook",
        ),
        (
            'pods "p" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
            "admission_denied", 'The cluster\'s admission policy refuses the pod: violates PodSecurity "restricted',
        ),
        ('pods "p" is forbidden: no such account', "not_created", "The cluster does not create the pod: no such account."),
    ],
)  # fmt: skip
def test_of_a_refusal(message: str, reason: str, words: str) -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    fault = reasons.of_set({"spec": {}, "status": {"conditions": [failure]}})
    assert fault is not None
    assert fault.reason == reason
    assert fault.message.startswith(words)


def test_a_set_without_conditions_tells_by_its_latest_event_while_pods_are_missing() -> None:
    told = [
        {"reason": "FailedCreate", "message": "exceeded quota: small", "lastTimestamp": "2026-01-01T00:00:02Z"},
        {"reason": "SuccessfulCreate", "lastTimestamp": "2026-01-01T00:00:01Z"},
    ]
    lacks = {"kind": "StatefulSet", "spec": {"replicas": 2}, "status": {"replicas": 1}}
    fault = reasons.of_set(lacks, told)
    assert fault is not None
    assert fault.reason == "quota_exceeded"
    later = {"reason": "SuccessfulCreate", "lastTimestamp": "2026-01-01T00:00:03Z"}
    assert reasons.of_set(lacks, [*told, later]) is None  # what was before has passed
    assert reasons.of_set(lacks) is None
    assert reasons.of_set({**lacks, "status": {"replicas": 2}}, told) is None


def test_a_deadline() -> None:
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    fault = reasons.of_set({"spec": {"progressDeadlineSeconds": 600}, "status": {"conditions": [late]}})
    assert fault == Fault(
        "deadline", "The cluster has seen no progress within 600 seconds and gave up waiting.", final=True
    )


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["status", "spec", "metadata", "conditions", "type", "reason", "message", "containerStatuses", "state", "waiting",
     "terminated", "lastState", "exitCode", "restartCount", "name", "initContainerStatuses", "image"]
)  # fmt: skip
NESTED = st.dictionaries(FIELDS, ANY | st.lists(st.dictionaries(FIELDS, ANY, max_size=4), max_size=2), max_size=5)


@given(NESTED, st.lists(NESTED, max_size=2))
@settings(max_examples=300, deadline=None)
def test_nothing_that_a_cluster_says_is_too_strange(status: dict[str, Any], events: list[dict[str, Any]]) -> None:
    for found in (
        reasons.of_pod({"metadata": {}, "status": status}, events),
        reasons.of_set({"status": status}),
    ):
        assert found is None or len(found.message) < 2000


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-02T03:04:05+05:30", datetime(2026, 1, 1, 21, 34, 5, tzinfo=UTC)),
        ("0001-01-01T00:00:00+23:59", None),
        ("9999-12-31T23:59:59-23:59", None),
        ("soon", None), ("", None), (None, None), (20260102, None), ({}, None),
    ],
)  # fmt: skip
def test_times_are_in_utc_whatever_a_cluster_writes(said: object, meant: datetime | None) -> None:
    assert reasons.moment(said) == meant
    node = {"status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": said}]}}
    away = inspect.node(node).away_since
    assert away == meant
    assert away is None or away < clock.now()


@given(st.one_of(st.text(max_size=40), st.datetimes(timezones=st.none() | st.timezones()).map(datetime.isoformat)))
def test_every_time_can_be_compared(said: str) -> None:
    found = reasons.moment(said)
    assert found is None or (found.tzinfo is UTC and (found > clock.now()) in (True, False))

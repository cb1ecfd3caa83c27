"""How pods are told as workers: alone, or as groups that are as the worst of their pods."""

from typing import Any

import pytest

from services.cluster.runtimes.base import WorkerStatus
from services.cluster.runtimes.kubernetes import observe, shape
from services.cluster.runtimes.kubernetes.intent import Intent
from services.cluster.runtimes.kubernetes.manifests import Builder
from services.cluster.runtimes.kubernetes.observe import Look
from tests.services.cluster.runtimes.kubernetes.support import OWNER, container, workload

READY = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
RUNS = {"name": "server", "ready": True, "started": True, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
CRASHED = {
    "name": "server", "ready": False, "restartCount": 3,
    "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 7}},
}  # fmt: skip
BUILDER = Builder(workload("e", container=container(pods=3)), OWNER)
INTENT = Intent(
    endpoint_id="e", owner=OWNER, generation=4, template_generation=4, replicas=1, port=8080, memory_bytes=300, gpus=12,
    pods=3, manifests=BUILDER.all(),
)  # fmt: skip


def pod(name: str, rank: int | None = 0, status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": "worker", **({"stepway/rank": str(rank)} if rank is not None else {})}
    annotations = {"stepway/template": INTENT.template, "stepway/generation": "4"}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels, "annotations": annotations, **metadata},
        "spec": {"nodeName": f"node-of-{name}"},
        "status": status or {"conditions": [READY], "containerStatuses": [RUNS]},
    }


def seen(*pods: dict[str, Any]) -> list[WorkerStatus]:
    return [one.status for one in observe.workers(Look({"Pod": list(pods)}), INTENT, "https://cluster")]


def test_pods_of_one_number_are_a_worker_in_the_order_of_numbers_and_ranks() -> None:
    names = ["ep-e-10", "ep-e-r2-2", "ep-e-r1-10", "ep-e-2", "ep-e-r1-2", "ep-e-r2-10"]
    pods = [pod(name, int(name.split("-r")[1][0]) if "-r" in name else 0) for name in names]
    found = shape.workers(pods, "ep-e")
    assert [(one.name, [each["metadata"]["name"] for each in one.pods]) for one in found] == [
        ("ep-e-2", ["ep-e-2", "ep-e-r1-2", "ep-e-r2-2"]),
        ("ep-e-10", ["ep-e-10", "ep-e-r1-10", "ep-e-r2-10"]),
    ]
    alone = [pod("b", None, creationTimestamp="1"), pod("a", None, creationTimestamp="2")]
    assert [one.name for one in shape.workers([*pods, *alone], "ep-e")] == ["b", "a", "ep-e-2", "ep-e-10"]


def test_a_whole_group_is_one_ready_worker() -> None:
    (one,) = seen(pod("ep-e-r1-0", 1), pod("ep-e-0"), pod("ep-e-r2-0", 2))
    assert (one.id, one.state, one.gpus, one.memory_bytes, one.generation) == ("ep-e-0", "ready", 12, 300, 4)
    assert one.node == "node-of-ep-e-0, node-of-ep-e-r1-0, node-of-ep-e-r2-0"
    assert one.url == "https://cluster/api/v1/namespaces/stepway/pods/ep-e-0:8080/proxy"
    assert one.ready_at is not None


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_group_that_lacks_a_pod_is_starting(missing: int) -> None:
    (one,) = seen(*(pod(shape.set_name("ep-e", rank) + "-0", rank) for rank in range(3) if rank != missing))
    assert (one.id, one.state, one.ready_at) == ("ep-e-0", "starting", None)
    assert (one.url is None) == (missing == 0)


def test_a_group_is_as_the_worst_of_its_pods_and_names_it() -> None:
    crashed = pod("ep-e-r2-0", 2, {"containerStatuses": [CRASHED]})
    (one,) = seen(pod("ep-e-0"), pod("ep-e-r1-0", 1), crashed)
    assert (one.state, one.reason, one.exit_code, one.restarts) == ("crash_loop", "exited", 7, 3)
    assert one.message == "ep-e-r2-0: The server ended with exit code 7. It has been restarted 3 times."
    (one,) = seen(pod("ep-e-0"), pod("ep-e-r1-0", 1, deletionTimestamp="2026-01-01T00:00:00Z"), crashed)
    assert one.state == "stopping"


@pytest.mark.parametrize("name", ["", "x", "ep-e-", "ep-e-²", "ep-e-99999999999999999999", "-"])
def test_any_name_is_some_number(name: str) -> None:
    (one,) = shape.workers([pod(name, 0)], "ep-e")
    assert one.name == "ep-e-0"

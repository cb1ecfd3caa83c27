"""Faults of Stepway in the middle of jobs on a real cluster. Each job ends once, right; see test_kubernetes_outages.

A round takes the cluster from registration to its end, and each stage's job meets the fault once, at one of its points.
Rounds differ in the point; an ordinary run takes one of each. The cluster is these tests' own: they stop its servers.
"""

import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Make
from tests.e2e.gate import Gate
from tests.e2e.instance import Stepway, until
from tests.e2e.lives import PATIENCE, SERVES, STAGES, STEPS, Life, installed, left_in, life, own, rounds
from tests.e2e.test_faults import check_events, wait_for_end
from tests.testbed.cluster import Cluster

__all__ = ["installed", "life", "own"]

POINTS = {kind: [(key, state) for key in keys for state in ("running", "succeeded")] for kind, keys in STEPS.items()}
CANCELLED = ("deploy_model", "add_worker")
TAKEN_OVER_WITHIN = 60.0  # seconds, on a machine that is busy with other tests; alone it is under 15


# ---- of Stepway


@pytest.mark.timeout(1500)
@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("number", rounds(POINTS))
def test_a_kill_at_any_point_loses_doubles_and_leaves_nothing(life: Life, number: int) -> None:
    stepway = life.stepway
    for kind in STAGES:
        key, state = POINTS[kind][number % len(POINTS[kind])]
        with Gate(stepway.database(), kind, key, state) as gate:
            job = life.begin(kind)
            gate.wait(PATIENCE)
            postgres = stepway.postgres()
            stepway.kill()
        wait_for_end(postgres)
        stepway.start()
        ended = life.ended(job)
        assert ended["state"] == "succeeded", (kind, key, state, ended)
        check_events(stepway, job)
        life.check(kind)


@pytest.mark.timeout(1500)
@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("number", rounds({kind: STEPS[kind] for kind in CANCELLED}))
def test_a_cancel_at_any_step_leaves_nothing(life: Life, number: int) -> None:
    life.done("register_cluster")
    cancel_at(life, "deploy_model", STEPS["deploy_model"][number])
    life.check("register_cluster")
    life.done("deploy_model")  # by the same name
    if number < len(STEPS["add_worker"]):
        cancel_at(life, "add_worker", STEPS["add_worker"][number])
        life.check("deploy_model")
    life.done("delete_endpoint")


def cancel_at(life: Life, kind: str, key: str) -> None:
    """The cancel comes while the step is held, and so before its end."""
    stepway = life.stepway
    with Gate(stepway.database(), kind, key, "running") as gate:
        job = life.begin(kind)
        gate.wait(PATIENCE)
        gate.cancel(stepway, job)
    ended = life.ended(job)
    assert ended["state"] == "cancelled", (kind, key, ended)
    check_events(stepway, job)


# ---- two processes


def watchers(stepway: Stepway, cluster_id: str) -> list[int]:
    """The pids of the processes that watch the cluster."""
    rows = stepway.sql(
        """SELECT p.pid FROM jobs.lease l JOIN jobs.process p ON p.id = l.holder
            WHERE l.name = %s AND p.lease_until > clock_timestamp()""",
        f"cluster:{cluster_id}",
    )
    return [row[0] for row in rows]


def watches(cluster: Cluster) -> int:
    """How many watches of Deployments in a namespace the API server has open: the cluster's own servers watch all of them."""
    lines = cluster.api.admin.get("/metrics").raise_for_status().text.splitlines()
    mine = ('verb="WATCH"', 'resource="deployments"', 'scope="namespace"')
    found = [
        one for one in lines if one.startswith("apiserver_longrunning_requests{") and all(map(one.__contains__, mine))
    ]
    return sum(int(float(one.rsplit(" ", 1)[1])) for one in found)


@pytest.mark.timeout(900)
def test_one_of_two_processes_watches_and_the_other_takes_over(
    make: Make, own: Cluster, database_url: str, folder: Path
) -> None:
    shared = {"database_url": database_url, "objects_dir": folder / "objects", "key_file": folder / "shared.key",
              "machine_dir": folder / "machine", **SERVES}  # fmt: skip
    first, second = make("one", **shared).start(), make("two", **shared)
    second.start()
    second.key = first.key
    life = Life(first, own, "")
    life.done("register_cluster")
    until(lambda: watchers(first, life.id), what="a watcher")
    until(lambda: watches(own) == 1, what="one watch")
    by_pid = {first.pid: first, second.pid: second}
    (pid,) = watchers(first, life.id)
    other = second if pid == first.pid else first
    by_pid[pid].kill()
    began = time.monotonic()
    until(lambda: watchers(other, life.id) == [other.pid], what="the other to watch")
    until(lambda: watches(own) == 1, what="its watch")
    assert time.monotonic() - began < TAKEN_OVER_WITHIN
    own.space.kill("kube-apiserver")
    try:
        until(lambda: state(other, life.id) == "unavailable", what="it to see the cluster go")
    finally:
        own.restart_api_server()
    until(lambda: state(other, life.id) == "available", what="it to see the cluster come back")
    by_pid[pid].start()
    until(lambda: watchers(other, life.id) == [other.pid] and watches(own) == 1, what="one watcher as before")
    assert left_in(own) == []


def state(stepway: Stepway, cluster_id: str) -> str:
    return str(stepway.get(f"/clusters/{cluster_id}")["state"])

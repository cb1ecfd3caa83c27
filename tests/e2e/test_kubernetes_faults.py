"""Faults in the middle of jobs on a real cluster: of Stepway, of the API server, of the node. Each job ends once, right.

A round takes the cluster from registration to its end, and each stage's job meets the fault once, at one of its points.
Rounds differ in the point; an ordinary run takes one of each. The cluster is these tests' own: they stop its servers.
"""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.cluster.jobs import JOBS
from tests.e2e.conftest import Make
from tests.e2e.gate import Gate, cancel_queued
from tests.e2e.instance import Stepway, until
from tests.e2e.lives import PATIENCE, SERVES, STAGES, Life, left_in
from tests.e2e.test_faults import check_events, wait_for_end
from tests.testbed.cluster import Cluster
from tests.testbed.machine import need

STEPS = {job.kind: [step.key for step in job.steps] for job in JOBS if job.kind in STAGES}
POINTS = {kind: [(key, state) for key in keys for state in ("running", "succeeded")] for kind, keys in STEPS.items()}
CANCELLED = ("deploy_model", "add_worker")
OUTAGE = 30.0 if os.environ.get("STEPWAY_FAULTS") == "all" else 10.0  # seconds
TAKEN_OVER_WITHIN = 60.0  # seconds, on a machine that is busy with other tests; alone it is under 15


def rounds(points: dict[str, Any]) -> range:
    return range(max(map(len, points.values())))


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    need("kube", "coredns", pods=True, images=("python", "llama"))
    with Cluster() as cluster:
        cluster.api.apply_access()
        cluster.load("python", "llama")
        yield cluster


@pytest.fixture(scope="module")
def installed(own: Cluster, model_file: Path) -> Iterator[tuple[Stepway, str]]:
    """One installation for all tests, and the model in it."""
    with tempfile.TemporaryDirectory(prefix="stepway-e2e-") as name:
        settings: dict[str, Any] = {"model_roots": model_file.parent, **SERVES}
        stepway = Stepway(Path(name), **settings)
        try:
            stepway.start()
            model = stepway.made(stepway.import_model(str(model_file)))
            stepway.made(stepway.scan(model))
            yield stepway, model
        finally:
            stepway.clean_up()


@pytest.fixture
def life(installed: tuple[Stepway, str], own: Cluster) -> Iterator[Life]:
    stepway, model = installed
    if stepway.ended:  # a test that failed has left it so
        stepway.start()
    life = Life(stepway, own, model)
    life.clear()
    yield life
    if not stepway.ended:
        life.clear()


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
        cancel = cancel_queued(stepway, job)
    cancel.join()
    ended = life.ended(job)
    assert ended["state"] == "cancelled", (kind, key, ended)
    check_events(stepway, job)


# ---- of the cluster


@pytest.mark.timeout(1500)
@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("number", rounds(STEPS))
def test_the_api_server_goes_in_the_middle_and_comes_back(life: Life, own: Cluster, number: int) -> None:
    for kind in STAGES:
        if number >= len(STEPS[kind]):  # an earlier round's
            life.done(kind)
            continue
        key = STEPS[kind][number]
        with Gate(life.stepway.database(), kind, key, "running") as gate:
            job = life.begin(kind)
            gate.wait(PATIENCE)
            own.space.kill("kube-apiserver")
        try:
            time.sleep(OUTAGE)
        finally:
            own.restart_api_server()
        ended = life.ended(job)
        check_events(life.stepway, job)
        if kind == "register_cluster":  # is not waited for: somebody sits before it, and may have given a wrong address
            ended = retried(life, ended)
        assert ended["state"] == "succeeded", (kind, key, ended)
        life.check(kind)


def retried(life: Life, job: dict[str, Any]) -> dict[str, Any]:
    """A registration that has failed because its cluster was away, told so, tried again."""
    if job["state"] == "succeeded":  # it had nothing more to ask
        return job
    assert job["error"]["code"] in ("cluster_refused", "cluster_unreachable"), job
    shown = life.stepway.get(f"/clusters/{life.id}")
    assert (shown["state"], shown["reason"]) == ("error", job["error"]["message"])
    life.stepway.post(f"/jobs/{job['id']}/retry", {})
    return life.ended(job["id"])


@pytest.mark.timeout(1500)
@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("server", ["kubelet", "containerd"])
def test_the_node_s_servers_stop_in_the_middle_and_go_on(life: Life, own: Cluster, server: str) -> None:
    life.done("register_cluster")
    for kind, key in (("deploy_model", "apply"), ("add_worker", "scale"), ("delete_endpoint", "remove")):
        with Gate(life.stepway.database(), kind, key, "running") as gate:
            job = life.begin(kind)
            gate.wait(PATIENCE)
            if server == "kubelet":
                own.space.signal(server, signal.SIGSTOP)
            else:
                own.space.kill(server)
        try:
            if server == "kubelet":
                until(lambda: not own.node_ready(), seconds=PATIENCE, what="the node to be missed")
        finally:
            if server == "kubelet":
                own.space.signal(server, signal.SIGCONT)
            else:
                own.restart(server)
        until(own.node_ready, seconds=PATIENCE, what="the node")
        ended = life.ended(job)
        assert ended["state"] == "succeeded", (kind, ended)
        check_events(life.stepway, job)
        life.check(kind)


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

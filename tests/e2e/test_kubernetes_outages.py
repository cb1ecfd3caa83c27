"""Faults of a real cluster in the middle of jobs: of its API server, of its node. Each job ends once, right.

As in test_kubernetes_faults, a round takes the cluster from registration to its end, and each stage's job meets the fault once.
"""

import os
import signal
import time
from typing import Any

import pytest

from tests.e2e.gate import Gate
from tests.e2e.instance import until
from tests.e2e.lives import PATIENCE, STAGES, STEPS, Life, installed, life, own, rounds
from tests.e2e.test_faults import check_events
from tests.testbed.cluster import Cluster

__all__ = ["installed", "life", "own"]

OUTAGE = 30.0 if os.environ.get("STEPWAY_FAULTS") == "all" else 10.0  # seconds


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

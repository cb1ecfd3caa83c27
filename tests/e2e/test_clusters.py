"""A registered cluster's life: registered by the form, kept up by the command line, left with nothing of ours on it."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.instance import Stepway, until
from tests.testbed.cluster import Cluster

CONFIG_MAPS = "/api/v1/namespaces/stepway/configmaps"


def register(stepway: Stepway, kubeconfig: bytes, name: str) -> Any:
    """The workflow of the registration, by one request."""
    fields = {"workflow_total_steps": "3", "step_number": "1", "name": name, "trigger_workflow": "true"}
    files = {"configuration_file": ("kubeconfig.yaml", kubeconfig)}
    answer = stepway.ask("POST", "/clusters/clusters", data=fields, files=files)
    assert answer.status_code == 200, answer.text
    return answer.json()


def run(stepway: Stepway, *arguments: str) -> Any:
    done = stepway.command("clusters", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "json" in arguments else done.stdout


def leave_something(cluster: Cluster, owner: str) -> str:
    """An object of an endpoint that nobody knows."""
    name = f"ep-{uuid4()}"
    labels = {
        "app.kubernetes.io/managed-by": "stepway",
        "stepway/owner": owner,
        "stepway/endpoint": name.removeprefix("ep-"),
    }
    document = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "stepway", "labels": labels},
    }
    cluster.api.apply(CONFIG_MAPS, document)
    return name


def is_there(cluster: Cluster, name: str) -> bool:
    return cluster.api.admin.get(f"{CONFIG_MAPS}/{name}").status_code == 200


@pytest.mark.timeout(400)
def test_a_cluster_is_registered_kept_up_and_left(stepway: Stepway, cluster: Cluster, folder: Path) -> None:
    stepway.settings |= {"key": stepway.key, "url": stepway.url}
    first = stepway.made(register(stepway, cluster.api.access_kubeconfig(), "first"))
    _twice(stepway, cluster.api.access_kubeconfig(), first)

    shown = stepway.get(f"/clusters/{first}")
    assert (shown["state"], shown["facts"]["node_count"]) == ("available", 1)
    run(stepway, "inspect", "first")
    assert stepway.get(f"/clusters/{first}")["facts"]["inspected_at"] > shown["facts"]["inspected_at"]

    _credentials(stepway, cluster, folder, first)

    left = leave_something(cluster, first)
    (orphan,) = run(stepway, "orphans", "first", "-o", "json")
    assert orphan["objects"] == [f"ConfigMap/{left}"]
    run(stepway, "orphans", "first", "--remove", "--yes")
    assert not is_there(cluster, left)

    left = leave_something(cluster, first)
    foreign = leave_something(cluster, str(uuid4()))
    run(stepway, "delete", "first", "--yes")
    assert not is_there(cluster, left)
    assert is_there(cluster, foreign)
    cluster.api.admin.delete(f"{CONFIG_MAPS}/{foreign}").raise_for_status()
    assert stepway.ask("GET", f"/clusters/{first}").status_code == 404
    assert stepway.sql("SELECT sealed FROM platform.cluster WHERE id = %s", first) == [(None,)]

    third = stepway.made(register(stepway, cluster.api.access_kubeconfig(), "third"))
    run(stepway, "delete", "third", "--force", "--yes")
    assert stepway.ask("GET", f"/clusters/{third}").status_code == 404


def _twice(stepway: Stepway, kubeconfig: bytes, first: str) -> None:
    """By other credentials than the first time: it is the cluster that is known. The draft stays."""
    sent = {"workflow_total_steps": "3", "step_number": "1", "name": "again", "trigger_workflow": "true"}
    again = stepway.ask("POST", "/clusters/clusters", data=sent, files={"configuration_file": ("k", kubeconfig)})
    said = again.json()
    assert (again.status_code, said["code"], said["param"]) == (409, "cluster_known", "configuration_file")
    assert (said["detail"], said["cluster_id"]) == ("This cluster is registered already, as first.", first)
    assert [one["id"] for one in stepway.get("/clusters?kind=kubernetes")["data"]] == [first]
    assert stepway.get(f"/workflows/{said['workflow']['workflow_id']}")["job"] is None


def _credentials(stepway: Stepway, cluster: Cluster, folder: Path, cluster_id: str) -> None:
    before = stepway.sql("SELECT sealed FROM platform.cluster WHERE id = %s", cluster_id)
    path = f"/clusters/{cluster_id}/credentials"
    refused = stepway.ask("PUT", path, json={"configuration_file": "kind: Pod"})
    assert (refused.status_code, refused.json()["code"]) == (422, "kubeconfig_wrong_kind")
    wrong = {"configuration_file": ("k", cluster.api.kubeconfig_file(token="not-a-token"))}
    tried = stepway.ended_job({"job": stepway.ask("PUT", path, files=wrong).json()})
    assert tried["error"]["code"] == "cluster_unauthorized"
    assert stepway.sql("SELECT sealed FROM platform.cluster WHERE id = %s", cluster_id) == before
    token = cluster.api.token()
    file = folder / "new.kubeconfig"
    file.write_bytes(cluster.api.kubeconfig_file(token=token))
    run(stepway, "credentials", "first", str(file))
    assert stepway.sql("SELECT sealed FROM platform.cluster WHERE id = %s", cluster_id) != before
    assert stepway.sql("SELECT count(*) FROM platform.cluster_access") == [(0,)]
    until(lambda: stepway.get(f"/clusters/{cluster_id}")["state"] == "available", what="the watch with the new ones")
    assert not any(token in answer for answer in stepway.answers)

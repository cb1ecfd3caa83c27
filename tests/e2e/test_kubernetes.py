"""The main job on a real cluster, with real pods: registered by the form, deployed to, scaled, deleted, nothing left.

One Stepway serves all of these tests, started anew with other settings where a test needs them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from tests.e2e.instance import Stepway, until
from tests.e2e.registered import PYTHON, SERVES, Json, Registered, registered_at
from tests.e2e.relay import Relay
from tests.otlp import Receiver
from tests.testbed.cluster import Cluster

ABSENT = "registry.invalid/no/such:1"  # its registry's name does not resolve: the pod waits, and is given two minutes
INVALID = "docker.io/Not/valid:1"


@pytest.fixture(scope="module")
def registered(cluster: Cluster, model_file: Path) -> Iterator[Registered]:
    with registered_at(cluster, model_file) as made:
        yield made


def test_a_model_is_served_by_pods_that_come_and_go(registered: Registered) -> None:
    """Pods do not reach us here, so the bytes are pushed: no port 9 answers."""
    nowhere = f"http://{registered.cluster.host}:9"
    stepway = registered.with_settings(**SERVES, advertised_url=nowhere).stepway
    deploying = registered.deploy("chat")
    endpoint = stepway.made(deploying)
    assert registered.step(deploying, "probe")["state"] == "succeeded"
    shown = stepway.get(f"/endpoints/{endpoint}")
    assert (shown["state"], shown["engine"]) == ("running", "llama_cpp")
    assert stepway.chat(endpoint)
    assert stepway.made(stepway.add_worker(endpoint)) == endpoint
    assert len(registered.pods(endpoint)) == 2
    check_what_is_told_of_workers(stepway, registered.cluster, endpoint)
    older, newer = (one["id"] for one in stepway.get(f"/endpoints/{endpoint}/workers")["data"])
    refused = stepway.ask("DELETE", f"/endpoints/{endpoint}/workers/{older}")
    assert (refused.status_code, refused.json()["code"]) == (409, "not_the_newest_worker")
    assert newer in refused.json()["detail"]
    removing = stepway.ask("DELETE", f"/endpoints/{endpoint}/workers/{newer}")
    assert removing.status_code == 202, removing.text
    assert stepway.ended_job({"job": removing.json()})["state"] == "succeeded"
    until(lambda: len(registered.pods(endpoint)) == 1, what="one worker to be left")
    assert stepway.ended_job(stepway.delete_endpoint(endpoint))["state"] == "succeeded"
    assert registered.left(endpoint) == []


def check_what_is_told_of_workers(stepway: Stepway, cluster: Cluster, endpoint: str) -> None:
    workers = stepway.get(f"/endpoints/{endpoint}/workers")["data"]
    pods = {pod["metadata"]["name"]: pod for pod in cluster.ready_pods(NAMESPACE, f"stepway/endpoint={endpoint}")}
    assert {one["id"] for one in workers} == set(pods)
    for one in workers:
        assert (one["state"], one["restarts"]) == ("ready", 0)
        assert one["node"] == pods[one["id"]]["spec"]["nodeName"]
        assert one["memory_bytes"] > 0
        assert one["started_at"]
    first = workers[0]["id"]
    both, alone = (stepway.ask("GET", f"/endpoints/{endpoint}/logs{query}").text for query in ("", f"?worker={first}"))
    assert {line.split()[0] for line in both.splitlines()} == set(pods)
    assert {line.split()[0] for line in alone.splitlines()} == {first}
    assert any(one["type"] == "state" for one in stepway.get(f"/endpoints/{endpoint}/events")["data"])


def test_pods_that_reach_us_fetch_the_model(registered: Registered) -> None:
    with Relay(registered.cluster.host) as relay, Receiver() as traces:
        stepway = registered.with_settings(**SERVES, advertised_url=relay.url, otlp_endpoint=traces.url).stepway
        relay.lead_to(stepway.url)
        deploying = registered.deploy("fetched")
        endpoint = stepway.made(deploying)
        check_trace(traces)
        assert relay.connections > 1  # the pod that asked first, and the loader
        assert stepway.ended_job(stepway.delete_endpoint(endpoint))["state"] == "succeeded"
    assert registered.left(endpoint) == []


def check_trace(traces: Receiver) -> None:
    """One trace, from the request that triggered it to the pod that is ready."""
    run = traces.one("run deploy_model")
    spans = {span.name: span for span in traces.spans if span.trace == run.trace}
    assert spans["submit deploy_model"].parent == spans["POST /models/deploy-workflow"].id
    for outside, step in (("ask from a pod", "verify"), ("bring files", "bring_model"), ("apply", "apply"),
                          ("wait until ready", "wait_ready")):  # fmt: skip
        within = spans[f"step deploy_model/{step}"]
        assert spans[f"kubernetes {outside}"].parent == within.id
        assert within.parent == spans["submit deploy_model"].id


def test_what_does_not_fit_is_refused_before_anything_is_made(registered: Registered) -> None:
    stepway = registered.with_settings(**SERVES).stepway
    job = stepway.ended_job(registered.deploy("large", concurrent_requests=1000))
    assert (job["state"], job["error"]["code"], job["error"]["step"]) == ("failed", "insufficient_capacity", "verify")
    assert "of 125 workers" in job["error"]["message"]
    assert registered.left(job["resource"]["id"]) == []
    many = stepway.ended_job(registered.deploy("larger", concurrent_requests=100_000))
    assert many["error"]["code"] == "insufficient_capacity"
    tuned = stepway.ended_job(registered.deploy("tuned", {"tensor_parallel": 2}))
    assert (tuned["error"]["code"], tuned["error"]["step"]) == ("tuning_unsupported", "verify")
    assert "The engine llama_cpp has no such setting: tensor_parallel." in tuned["error"]["message"]


def test_a_deploy_that_fails_says_why_and_leaves_nothing(registered: Registered) -> None:
    stepway = registered.with_settings(image_llama_cpp=INVALID, image_loader=PYTHON).stepway
    deploying = registered.deploy("broken")
    job = stepway.ended_job(deploying)
    reason = f"{INVALID} is no valid image name."
    assert (job["state"], job["error"]["step"]) == ("failed", "wait_ready")
    assert job["error"]["code"] == "worker_no_image"
    assert reason in job["error"]["message"]
    assert reason in registered.step(deploying, "wait_ready")["error"]["message"]
    endpoint = job["resource"]["id"]
    shown = stepway.get(f"/endpoints/{endpoint}")
    assert shown["state"] == "failed"
    assert reason in shown["reason"]
    assert reason in stepway.ask("GET", f"/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}).text
    assert registered.left(endpoint) == []


def test_a_deploy_that_is_cancelled_while_it_waits_leaves_nothing(registered: Registered) -> None:
    stepway = registered.with_settings(image_llama_cpp=ABSENT, image_loader=PYTHON).stepway
    deploying = registered.deploy("waiting")

    def said() -> bool:
        return "could not be pulled" in (registered.step(deploying, "wait_ready")["message"] or "")

    until(said, what="the pod's reason while it waits")
    endpoint = deploying["job"]["resource"]["id"]
    assert registered.left(endpoint)
    assert stepway.ask("POST", f"/jobs/{deploying['job']['id']}/cancel").status_code < 300
    assert stepway.ended_job(deploying)["state"] == "cancelled"
    assert registered.left(endpoint) == []


def test_a_cluster_that_is_away_is_waited_for(registered: Registered) -> None:
    stepway = registered.with_settings(**SERVES).stepway
    registered.relay.cut()
    deploying = registered.deploy("patient")
    until(lambda: _waits(registered.step(deploying, "verify")), what="the word that it waits")
    registered.relay.mend()
    endpoint = stepway.made(deploying)
    registered.relay.cut()
    deleting = stepway.delete_endpoint(endpoint)
    until(lambda: _waits(registered.step(deleting, "remove")), what="the word that it waits")
    registered.relay.mend()
    assert stepway.ended_job(deleting)["state"] == "succeeded"
    assert registered.left(endpoint) == []


def _waits(step: Json) -> bool:
    return str(step["message"]).startswith("Waiting for the cluster: 127.0.0.1:")

"""As test_changes, with pods: an endpoint on a real cluster serves something else, stops, starts, scales by load."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from tests.e2e.instance import Stepway, until
from tests.e2e.registered import Json, Registered, registered_at
from tests.e2e.test_changes import asked_all_the_time, change, do, model, three_models
from tests.testbed.cluster import Cluster


@pytest.fixture(scope="module")
def roots(model_file: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="stepway-e2e-") as name:
        yield three_models(Path(name) / "models", model_file)


@pytest.fixture(scope="module")
def registered(cluster: Cluster, roots: Path) -> Iterator[Registered]:
    with registered_at(cluster, roots / "first.gguf") as made:
        yield made


@pytest.fixture
def endpoint(registered: Registered) -> Iterator[str]:
    made = registered.stepway.made(registered.deploy("changing", {"max_context": 512}))
    yield made
    assert registered.stepway.ended_job(registered.stepway.delete_endpoint(made))["state"] == "succeeded"
    assert registered.left(made) == []


def claims(registered: Registered, endpoint: str) -> list[str]:
    return [one for one in registered.left(endpoint) if one.startswith("PersistentVolumeClaim/")]


@pytest.mark.timeout(400)
def test_pods_are_replaced_while_they_answer(registered: Registered, endpoint: str, roots: Path) -> None:
    stepway = registered.stepway
    second = model(stepway, roots, "second")
    assert change(stepway, endpoint, replicas=2)["state"] == "succeeded"
    before = {pod["metadata"]["uid"] for pod in registered.pods(endpoint)}
    with asked_all_the_time(stepway, endpoint) as refused:
        job = change(stepway, endpoint, model_id=second)
    assert job["state"] == "succeeded", job
    assert refused == []
    seen = stepway.get(f"/endpoints/{endpoint}")
    assert (seen["model_id"], seen["state"], seen["replicas"]) == (second, "running", {"desired": 2, "ready": 2})
    until(lambda: len(registered.pods(endpoint)) == 2, what="two pods")
    assert not before & {pod["metadata"]["uid"] for pod in registered.pods(endpoint)}
    until(lambda: len(claims(registered, endpoint)) == 1, what="the first model's claim to be gone")
    config = change(stepway, endpoint, deploy_config={"concurrent_requests": 2})
    assert config["state"] == "succeeded", config
    assert stepway.get(f"/endpoints/{endpoint}")["concurrency"]["total"] >= 2
    assert stepway.chat(endpoint)


@pytest.mark.timeout(400)
def test_a_setting_of_the_engine_is_changed_while_pods_answer(registered: Registered, endpoint: str) -> None:
    stepway = registered.stepway
    before = {pod["metadata"]["uid"] for pod in registered.pods(endpoint)}
    assert _longest_request(stepway, endpoint) == {"tuning": {"max_context": 512}, "context_tokens": 512, "status": 400}
    with asked_all_the_time(stepway, endpoint) as refused:
        job = change(stepway, endpoint, tuning={"max_context": 2048})
    assert job["state"] == "succeeded", job
    assert refused == []
    assert _longest_request(stepway, endpoint) == {
        "tuning": {"max_context": 2048},
        "context_tokens": 2048,
        "status": 200,
    }
    assert not before & {pod["metadata"]["uid"] for pod in registered.pods(endpoint)}
    answer = stepway.ask("PATCH", f"/endpoints/{endpoint}", json={"tuning": {"tensor_parallel": 2}})
    assert (answer.status_code, answer.json()["code"]) == (422, "tuning_unsupported")


def _longest_request(stepway: Stepway, endpoint: str) -> Json:
    """What is shown of it, and how the pods answer to a prompt of more than 512 tokens and less than 2048."""
    body = {"messages": [{"role": "user", "content": "one two three " * 300}], "max_tokens": 2}
    answer = stepway.ask("POST", f"/endpoints/{endpoint}/v1/chat/completions", json=body)
    shown = stepway.get(f"/endpoints/{endpoint}")
    return {"tuning": shown["tuning"], "context_tokens": shown["context_tokens"], "status": answer.status_code}


@pytest.mark.timeout(400)
def test_pods_that_do_not_become_ready_are_taken_back(registered: Registered, endpoint: str, roots: Path) -> None:
    stepway = registered.stepway
    before = stepway.get(f"/endpoints/{endpoint}")
    broken = model(stepway, roots, "broken")
    with asked_all_the_time(stepway, endpoint) as refused:
        job = change(stepway, endpoint, model_id=broken)
    assert (job["state"], job["error"]["step"]) == ("failed", "wait_ready"), job
    assert "attn_q" in job["error"]["message"]  # of the pod's last lines
    assert refused == []
    until(lambda: stepway.get(f"/endpoints/{endpoint}")["state"] == "running", what="the endpoint as it was")
    after = stepway.get(f"/endpoints/{endpoint}")
    for name in ("model_id", "digest", "deploy_config", "replicas", "concurrency"):
        assert after[name] == before[name]
    until(lambda: len(claims(registered, endpoint)) == 1, what="the broken model's claim to be gone")
    assert stepway.chat(endpoint)


@pytest.mark.timeout(400)
def test_pods_stop_start_and_follow_the_load(registered: Registered, endpoint: str) -> None:
    stepway = registered.stepway
    assert do(stepway, endpoint, "stop")["state"] == "succeeded"
    assert stepway.get(f"/endpoints/{endpoint}")["state"] == "stopped"
    until(lambda: registered.pods(endpoint) == [], what="no pod")
    nothing = {"desired": 0, "ready": 0}
    until(lambda: stepway.get(f"/endpoints/{endpoint}")["replicas"] == nothing, what="no worker to be told of")
    assert do(stepway, endpoint, "start")["state"] == "succeeded"
    assert stepway.chat(endpoint)
    scaled = change(stepway, endpoint, autoscale={"minimum": 1, "maximum": 3})
    assert scaled["state"] == "succeeded", scaled
    path = f"/apis/autoscaling/v2/namespaces/{NAMESPACE}/horizontalpodautoscalers"
    (scaler,) = registered.cluster.api.get(path, labelSelector=f"stepway/endpoint={endpoint}")["items"]
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (1, 3)
    assert stepway.get(f"/endpoints/{endpoint}")["autoscale"] == {"minimum": 1, "maximum": 3, "cpu_percent": 70}
    fixed = change(stepway, endpoint, autoscale=None)
    assert fixed["state"] == "succeeded", fixed
    assert registered.cluster.api.get(path, labelSelector=f"stepway/endpoint={endpoint}")["items"] == []
    assert stepway.chat(endpoint)

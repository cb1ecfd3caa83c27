"""An endpoint that serves is changed: another configuration or model, more and fewer workers, stopped and started."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Make
from tests.e2e.instance import Stepway, until


@pytest.fixture
def stepway(make: Make, folder: Path, model_file: Path) -> Stepway:
    return make(model_roots=three_models(folder / "models", model_file), maintenance_seconds=0.5).start()


def three_models(roots: Path, model_file: Path) -> Path:
    """The second has something behind its end that no tensor needs, the third lacks a tensor."""
    roots.mkdir()
    shutil.copy(model_file, roots / "first.gguf")
    content = model_file.read_bytes()
    (roots / "second.gguf").write_bytes(content + bytes(64))
    (roots / "broken.gguf").write_bytes(content.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight", 1))
    return roots


def change(stepway: Stepway, endpoint: str, **fields: Any) -> Any:
    answer = stepway.ask("PATCH", f"/endpoints/{endpoint}", json=fields)
    assert answer.status_code == 202, answer.text
    return stepway.ended_job({"job": answer.json()})


def do(stepway: Stepway, endpoint: str, what: str) -> Any:
    return stepway.ended_job({"job": stepway.post(f"/endpoints/{endpoint}/{what}", None)})


def model(stepway: Stepway, roots: Path, name: str) -> str:
    made = stepway.made(stepway.import_model(str(roots / f"{name}.gguf"), name=name))
    stepway.made(stepway.scan(made))
    return made


@contextmanager
def asked_all_the_time(stepway: Stepway, endpoint: str) -> Iterator[list[str]]:
    """Gives the answers that were refusals."""
    stop = threading.Event()
    refused: list[str] = []

    def keep_asking() -> None:
        while not stop.is_set():
            body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 2}
            answer = stepway.ask("POST", f"/endpoints/{endpoint}/v1/chat/completions", json=body)
            if answer.status_code != 200:
                refused.append(answer.text)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        yield refused
    finally:
        stop.set()
        asking.join()


def serving(stepway: Stepway, endpoint: str) -> list[str]:
    """The files that the workers read."""
    return sorted({line.split("--model=")[1].split()[0] for line in stepway.processes(what="--model=").values()})


@pytest.mark.timeout(300)
def test_an_endpoint_is_changed_while_it_answers(stepway: Stepway, folder: Path) -> None:
    roots = folder / "models"
    first, second = model(stepway, roots, "first"), model(stepway, roots, "second")
    endpoint = stepway.made(stepway.deploy(first))
    assert change(stepway, endpoint, replicas=2)["state"] == "succeeded"
    with asked_all_the_time(stepway, endpoint) as refused:
        job = change(stepway, endpoint, model_id=second)
    assert job["state"] == "succeeded", job
    assert refused == []
    seen = stepway.get(f"/endpoints/{endpoint}")
    assert (seen["model_id"], seen["state"], seen["replicas"]) == (second, "running", {"desired": 2, "ready": 2})
    assert len(serving(stepway, endpoint)) == 1
    assert len(list((stepway.data / "machine" / "models" / endpoint).iterdir())) == 1  # the first model's are gone
    config = change(stepway, endpoint, deploy_config={"concurrent_requests": 2})
    assert config["state"] == "succeeded", config
    seen = stepway.get(f"/endpoints/{endpoint}")
    assert (seen["deploy_config"]["concurrent_requests"], seen["deploy_config"]["avg_context_length"]) == (2, 64)
    assert seen["concurrency"]["total"] >= 2
    assert stepway.chat(endpoint)


@pytest.mark.timeout(300)
def test_a_change_that_fails_goes_back_to_what_was_served(stepway: Stepway, folder: Path) -> None:
    first = model(stepway, folder / "models", "first")
    endpoint = stepway.made(stepway.deploy(first))
    before = stepway.get(f"/endpoints/{endpoint}")
    job = change(stepway, endpoint, model_id=model(stepway, folder / "models", "broken"))
    assert (job["state"], job["error"]["step"]) == ("failed", "wait_ready"), job
    assert "attn_q" in job["error"]["message"]
    until(lambda: stepway.get(f"/endpoints/{endpoint}")["state"] == "running", what="the endpoint as it was")
    after = stepway.get(f"/endpoints/{endpoint}")
    for name in ("model_id", "digest", "deploy_config", "replicas", "concurrency"):
        assert after[name] == before[name]
    assert stepway.chat(endpoint)
    assert len(list((stepway.data / "machine" / "models" / endpoint).iterdir())) == 1


@pytest.mark.timeout(300)
def test_a_stopped_endpoint_starts_with_as_many_workers_as_it_had(stepway: Stepway, folder: Path) -> None:
    endpoint = stepway.made(stepway.deploy(model(stepway, folder / "models", "first")))
    assert change(stepway, endpoint, replicas=2)["state"] == "succeeded"
    assert do(stepway, endpoint, "stop")["state"] == "succeeded"
    seen = stepway.get(f"/endpoints/{endpoint}")
    assert (seen["state"], seen["replicas"]) == ("stopped", {"desired": 0, "ready": 0})
    assert stepway.servers() == []
    again = stepway.ask("POST", f"/endpoints/{endpoint}/stop")
    assert (again.status_code, again.json()["code"]) == (409, "endpoint_not_ready")
    assert not stepway.chats(endpoint)
    stepway.stop()
    stepway.start()
    assert stepway.get(f"/endpoints/{endpoint}")["state"] == "stopped"
    assert do(stepway, endpoint, "start")["state"] == "succeeded"
    assert stepway.get(f"/endpoints/{endpoint}")["replicas"]["desired"] == 2
    assert stepway.chat(endpoint)


def test_what_cannot_be_changed_is_refused(stepway: Stepway, folder: Path) -> None:
    endpoint = stepway.made(stepway.deploy(model(stepway, folder / "models", "first")))
    unscanned = stepway.made(stepway.import_model(str(folder / "models" / "second.gguf"), name="second"))
    path = f"/endpoints/{endpoint}"
    for body, status, code in (
        ({}, 422, "missing_fields"),
        ({"replicas": 1}, 409, "conflict"),
        ({"replicas": 0}, 422, "validation_failed"),
        ({"name": "other"}, 422, "unknown_field"),
        ({"autoscale": {"minimum": 1, "maximum": 2}}, 422, "autoscale_unsupported"),
        ({"autoscale": {"minimum": 3, "maximum": 2}}, 422, "validation_failed"),
        ({"model_id": unscanned}, 409, "scan_required"),
        ({"model_id": endpoint}, 422, "reference_not_found"),
    ):
        answer = stepway.ask("PATCH", path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), (body, answer.text)
    stale = stepway.ask("PATCH", path, json={"replicas": 2}, headers={"If-Match": '"0"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "revision_mismatch")
    assert stepway.get(path)["state"] == "running"

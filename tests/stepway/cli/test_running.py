"""Jobs and endpoints: watching, cancelling, asking, workers and logs."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from stepway.client import Client
from tests.serving import Fault, FileServer
from tests.stepway.cli.conftest import ICON, Run


@pytest.fixture
def slow() -> Iterator[FileServer]:
    """A server whose file stops in its middle until the test ends."""
    with FileServer() as server:
        server.fail(Fault("model.gguf", times=99, pause_after=1000, method="GET"))
        yield server


@pytest.fixture
def job(slow: FileServer, client: Client, run: Run) -> str:
    """The id of an import that waits for its download."""
    url = slow.add("/model.gguf", bytes(200_000))
    result = run("wizard", "run", "local_model_onboarding", "--no-input", "-d", "--set", "modality=llm", "--set",
                 "provider_type=url", "--set", f"icon={ICON}", "--set", "name=Slow", "--set", f"uri={url}",
                 "-o", "json")  # fmt: skip
    assert result.code == 0, result.err
    assert slow.paused.wait(30)
    found: str = result.json["job"]["id"]
    return found


def test_a_job_is_cancelled_and_its_end_awaited(run: Run, client: Client, job: str) -> None:
    running = run("jobs", "show", job)
    assert "Download" in running.out
    assert client.get(f"/jobs/{job}")["state"] == "running"
    result = run("jobs", "cancel", job, "-o", "json")
    assert result.code == 0, result.err
    assert result.json["state"] == "cancelled"
    watched = run("jobs", "watch", job)
    assert watched.code == 4
    assert "cancelled" in watched.err
    assert run("jobs", "retry", job).code in (1, 4)
    assert run("jobs", "watch", "download").code == 2


def test_a_workflow_is_cancelled_with_its_job(run: Run, client: Client, job: str) -> None:
    workflow = client.get(f"/jobs/{job}")["workflow_id"]
    result = run("workflows", "cancel", workflow, "-o", "json")
    assert result.code == 0, result.err
    assert result.json["status"] == "cancelled"


# ---- endpoints


def test_a_question_is_answered_as_it_comes(run: Run, endpoint: dict[str, Any]) -> None:
    result = run("endpoints", "chat", "Smol chat", "Say hello.", "--max-tokens", "12", "--temperature", "0")
    assert result.code == 0, result.err
    assert len(result.out.strip()) > 3
    again = run(
        "endpoints", "chat", endpoint["id"], "Say hello.", "--max-tokens", "12", "--temperature", "0", "-o", "json"
    )
    assert again.json["choices"][0]["message"]["content"].strip() == result.out.strip()


def test_a_conversation_remembers(run: Run, endpoint: dict[str, Any]) -> None:
    lines = "Say hello.\n\nAnd again.\n"
    result = run("endpoints", "chat", "smol-chat", "--max-tokens", "8", "--system", "Be brief.", stdin=lines)
    assert result.code == 0, result.err
    assert len([line for line in result.out.splitlines() if line.strip()]) >= 2


def test_an_endpoint_that_is_not_there(run: Run, endpoint: dict[str, Any]) -> None:
    assert run("endpoints", "chat", "nobody", "Hello").code == 1
    unknown = run("endpoints", "chat", "00000000-0000-4000-8000-000000000000", "Hello")
    assert unknown.code == 1
    assert "Traceback" not in unknown.err


def test_logs(run: Run, endpoint: dict[str, Any]) -> None:
    result = run("endpoints", "logs", "Smol chat", "--tail", "5")
    assert result.code == 0, result.err
    assert result.out.strip()
    assert run("endpoints", "logs", "Smol chat", "--worker", "ghost").code == 1


def test_workers_come_and_go(run: Run, client: Client, endpoint: dict[str, Any]) -> None:
    assert len(run("endpoints", "workers", "Smol chat", "-o", "json").json) == 1
    added = run("endpoints", "add-worker", "Smol chat", "--concurrency", "1", "-o", "json")
    assert added.code == 0, added.err
    assert added.json["result"]["replicas"] == 2
    assert len(run("endpoints", "workers", "smol-chat", "-o", "json").json) == 2
    assert run("endpoints", "remove-worker", "Smol chat").code == 2  # not without --yes
    removed = run("endpoints", "remove-worker", "Smol chat", "--yes", "-o", "json")
    assert removed.code == 0, removed.err
    assert removed.json["state"] == "succeeded"
    last = run("endpoints", "remove-worker", "Smol chat", "--yes")
    assert last.code == 1
    assert "At least one worker stays" in last.err


def test_an_endpoint_is_deployed_and_deleted(
    run: Run, client: Client, endpoint: dict[str, Any], model: dict[str, Any]
) -> None:
    made = run("wizard", "run", "model_deployment", "--no-input", "--set", "model_id=SmolLM2", "--set", "project_id=default",
               "--set", "template_id=Small test", "--set", "endpoint_name=brief", "--set", "cluster_id=this machine")  # fmt: skip
    assert made.code == 0, made.err
    assert "brief" in made.out
    result = run("endpoints", "delete", "brief", "--yes", "-o", "json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["kind"] == "delete_endpoint"
    assert run("endpoints", "show", "brief").code == 1

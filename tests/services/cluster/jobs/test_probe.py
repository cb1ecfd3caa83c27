"""The first question to a worker, and what its answers mean for the job."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from uuid import uuid4

import pytest

from services.cluster.jobs.probe import probe, ready_workers
from services.cluster.runtimes.base import UnknownEndpoint, WorkerStatus
from services.cluster.runtimes.local.runtime import LocalRuntime
from shared.jobs.outcomes import Permanent, Retry, StepError
from tests.serving import Fault, Server, send


class Model(Server):
    """Answers every question with `status` and `body`."""

    status = 200
    body: object = {}

    def answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        send(request, self.status, json.dumps(self.body).encode(), {"Content-Type": "application/json"})


@pytest.fixture
def model() -> Iterator[Model]:
    with Model() as server:
        yield server


def worker(url: str) -> WorkerStatus:
    return WorkerStatus(id="e-0", ordinal=0, generation=1, state="ready", url=url)


@pytest.mark.parametrize(
    ("apis", "path", "body", "said"),
    [
        (["/v1/chat/completions", "/v1/completions"], "/v1/chat/completions",
         {"choices": [{"message": {"content": "Hello"}}]}, "Hello"),
        (["/v1/completions"], "/v1/completions", {"choices": [{"text": " there"}]}, " there"),
        (["/v1/embeddings"], "/v1/embeddings", {"data": [{"embedding": [0.5, 1]}]}, "2 dimensions"),
    ],
)  # fmt: skip
async def test_a_worker_is_asked_what_it_serves(
    model: Model, apis: list[str], path: str, body: object, said: str
) -> None:
    model.body = body
    assert await probe(worker(model.url), "the-key", "smol", apis) == said
    assert model.seen[0].path == path
    assert model.seen[0].headers["authorization"] == "Bearer the-key"


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [(503, {}, Retry), (401, {}, Permanent), (200, {"choices": []}, Permanent), (200, ["no"], Permanent)],
)
async def test_an_answer_that_is_none(model: Model, status: int, body: object, outcome: type[StepError]) -> None:
    model.status, model.body = status, body
    with pytest.raises(outcome) as raised:
        await probe(worker(model.url), "the-key", "smol", ["/v1/completions"])
    assert raised.value.code == "probe_failed"
    assert "the-key" not in raised.value.message


async def test_a_worker_that_is_gone_is_asked_again() -> None:
    with pytest.raises(Retry):
        await probe(worker("http://127.0.0.1:9"), "the-key", "smol", ["/v1/completions"])


async def test_no_worker_is_no_proof(tmp_path: Path) -> None:
    """A deployment whose workers have gone since they were ready must not pass as probed."""
    for replicas in (2, 0):
        with pytest.raises(UnknownEndpoint):
            await ready_workers(LocalRuntime(tmp_path), uuid4(), replicas)

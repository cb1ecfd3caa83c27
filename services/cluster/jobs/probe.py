"""One real inference against a worker: the proof that it serves, before anyone is sent to it."""

from uuid import UUID

import httpx

from services.cluster.runtimes.base import Observation, Runtime, WorkerStatus
from shared.jobs.outcomes import Permanent, Retry
from shared.telemetry.traces import outgoing, traced

TIMEOUT = 120.0
READY_AGAIN = 300.0  # seconds


async def ready_workers(runtime: Runtime, endpoint_id: UUID, replicas: int) -> Observation:
    """The endpoint, with so many workers ready. One that has gone since it was waited for, as all of a node's do while the
    cluster has not heard of the node, is waited for once more. Raises as `Runtime.wait_ready`.
    """
    seen = await runtime.observe_one(str(endpoint_id))
    if seen is not None and len(seen.ready) >= replicas:
        return seen
    return await runtime.wait_ready(str(endpoint_id), replicas, READY_AGAIN)


@traced("ask a worker")
async def probe(
    worker: WorkerStatus, key: str, model: str, apis: list[str], transport: httpx.AsyncBaseTransport | None = None
) -> str:
    """Ask the worker for one token, or one embedding; returns what it said, shortened. Raises Retry or Permanent.

    `transport` is the site's, for a worker that only the cluster's API server leads to.
    """
    path, body = _question(model, apis)
    headers = {"Authorization": f"Bearer {key}", **outgoing(), **({"Host": worker.host} if worker.host else {})}
    try:
        async with httpx.AsyncClient(
            trust_env=False, timeout=TIMEOUT, transport=transport if worker.via == "api_server" else None
        ) as client:
            answer = await client.post(f"{worker.url}{path}", json=body, headers=headers)
    except httpx.HTTPError as error:
        raise Retry("probe_failed", f"Worker {worker.ordinal} did not answer ({type(error).__name__}).") from error
    if answer.status_code != 200:
        not_yet = answer.status_code >= 500 or (worker.via == "ingress" and answer.status_code == 404)  # its own word
        outcome = Retry if not_yet else Permanent
        raise outcome("probe_failed", f"Worker {worker.ordinal} answered {answer.status_code} to its first question.")
    return _said(answer, worker)


def _question(model: str, apis: list[str]) -> tuple[str, dict[str, object]]:
    if "/v1/chat/completions" in apis:
        return "/v1/chat/completions", {
            "model": model,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 4,
        }
    if "/v1/completions" in apis:
        return "/v1/completions", {"model": model, "prompt": "Hi", "max_tokens": 4}
    return "/v1/embeddings", {"model": model, "input": "Hi"}


def _said(answer: httpx.Response, worker: WorkerStatus) -> str:
    try:
        body = answer.json()
        if "choices" in body:
            choice = body["choices"][0]
            said = choice["message"]["content"] if "message" in choice else choice["text"]
            return str(said)[:80]
        return f"{len(body['data'][0]['embedding'])} dimensions"
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise Permanent(
            "probe_failed", f"Worker {worker.ordinal} answered something that is not an inference."
        ) from error

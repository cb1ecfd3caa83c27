"""Steps of a wizard over HTTP, as in production: authenticated, checked, audited, with their events, durably committed.

The floor is the same work without any of ours: the very statements of each step, recorded from the app, sent by bare
psycopg in one transaction each, over as many connections, from a process of its own. Both take turns.
"""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg

from tests.bench.client import Connection, in_process
from tests.bench.figures import Figure, percentile
from tests.bench.server import Stepway
from tests.bench.steps_sql import WIZARD, WORKFLOW, Statement, bodies, record, renamed, with_project

CLIENTS = {1: 0.2, 16: 0.15, 64: 0.15}  # how many, and the share of the floor that is to be reached


def run(quick: bool) -> list[Figure]:
    rounds, seconds = (2, 1.0) if quick else (8, 2.0)
    figures: list[Figure] = []
    with Stepway() as stepway:
        project = stepway.get("/projects")["data"][0]["id"]
        recorded = asyncio.run(record(stepway, project))
        for clients, share in CLIENTS.items():
            in_process(steps_over_http, stepway.host, stepway.key, project, clients, 1.0)
            ours: list[float] = []
            floor: list[float] = []
            for _ in range(rounds):
                ours += in_process(steps_over_http, stepway.host, stepway.key, project, clients, seconds)
                floor += in_process(steps_bare, stepway.database_url, recorded, clients, seconds)
            figures += _figures(clients, share, ours, floor, rounds * seconds)
    statements = sum(len(one) for one in recorded[:-1]) / (len(recorded) - 1)
    figures.append(Figure("statements of a step", statements, "", note="mean, with neither BEGIN nor COMMIT"))
    return figures


def _figures(clients: int, share: float, ours: list[float], floor: list[float], seconds: float) -> list[Figure]:
    name = f"{clients} client{'s' if clients > 1 else ''}"
    p50, p99 = (percentile(ours, part) * 1000 for part in (0.5, 0.99))
    note = f"p50 {p50:.1f} ms; bare p50 {percentile(floor, 0.5) * 1000:.1f} ms, p99 {percentile(floor, 0.99) * 1000:.1f} ms"
    return [
        Figure(f"steps, {name}", len(ours) / seconds, "1/s", len(floor) / seconds, "1/s bare SQL", at_least=share),
        Figure(f"p99, {name}", p99, "ms", p50, "ms p50", at_most=8, note=note),
    ]


async def steps_over_http(host: tuple[str, int], key: str, project: str, clients: int, seconds: float) -> list[float]:
    """How long each step took, in seconds. Drafts are deleted after their last step, which is not counted."""
    taken: list[float] = []
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        connection = await Connection.open(host, key)
        draft = 0
        while time.perf_counter() < until:
            draft += 1
            workflow: dict[str, Any] = {}
            for step in with_project(bodies(number * 1_000_000 + draft), project):
                body = json.dumps({**workflow, **step}).encode()
                began = time.perf_counter()
                answer = await connection.request("POST", WIZARD, body)
                if (now := time.perf_counter()) < until:
                    taken.append(now - began)
                workflow = workflow or {"workflow_id": json.loads(answer)["workflow_id"]}
            await connection.request("DELETE", f"/workflows/{workflow['workflow_id']}")
        connection.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return taken


async def steps_bare(url: str, recorded: list[list[Statement]], clients: int, seconds: float) -> list[float]:
    """The same by statements alone. In threads, which psycopg serves faster than an event loop."""
    with ThreadPoolExecutor(clients) as pool:
        until = time.perf_counter() + seconds
        futures = [pool.submit(_bare_client, url, recorded, until) for _ in range(clients)]
        return [taken for future in futures for taken in future.result()]


def _bare_client(url: str, recorded: list[list[Statement]], until: float) -> list[float]:
    taken: list[float] = []
    steps = [[(text.encode(), dict(values), _naming(values)) for text, values in step] for step in recorded]
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        while time.perf_counter() < until:
            workflow_id = str(uuid4())
            for number, step in enumerate(steps, 1):
                began = time.perf_counter()
                for text, values, naming in step:
                    for name, recorded_value in naming.items():
                        values[name] = renamed(recorded_value, WORKFLOW, workflow_id)
                    cursor.execute(text, values)
                connection.commit()
                if (now := time.perf_counter()) < until and number < len(steps):
                    taken.append(now - began)
    return taken


def _naming(values: dict[str, Any]) -> dict[str, Any]:
    """The parameters that hold the workflow's id."""
    return {name: value for name, value in values.items() if WORKFLOW in str(value)}

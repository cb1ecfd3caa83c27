"""A project with somebody who works in it, flows to send, and an engine that runs their executions."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from services.app.context import AppContext
from services.app.flows.internal import FlowAccess
from services.app.internal import AppAccess
from services.flow.jobs import JOBS
from services.flow.tools import FlowTools
from shared.jobs.declare import Registry
from shared.jobs.engine import EmbeddedEngine
from tests.services.app.conftest import People, Person

Json = dict[str, Any]
SEEDS = Path(__file__).parents[3] / "contract" / "seeds"
PATIENCE = 60.0  # seconds; far more than anything here takes on an idle machine


def seed(page: str) -> list[bytes]:
    """The JSON of a page of the seed, byte for byte, in its order."""
    found = re.findall(r"```json\n(.*?)\n```", (SEEDS / page).read_text(), re.DOTALL)
    return [one.encode() for one in found]


REFS, TASKS = seed("data-flow-workflows.md"), seed("data-flow-quick-start.md")


def template(name: str = "hello", **more: Any) -> Json:
    """A flow in the dialect refs that needs nobody: it greets `who`."""
    return {
        "name": name,
        "input": [{"name": "who", "type": "text"}],
        "tasks": [{"ref": "greet", "type": "text.template", "input": {"template": "Hello {{input.who}}"}}],
        "output": [{"name": "said", "type": "text", "value": "{{refs.greet.output.text}}"}],
        **more,
    }


def waiting(timeout: float | None = None) -> Json:
    """A flow that greets, and then waits for an answer."""
    limit = {} if timeout is None else {"timeout": timeout}
    tasks = [
        *template()["tasks"],
        {"ref": "ask", "type": "flow.wait_event", "input": {"name": "approval", **limit}},
        {"ref": "last", "type": "text.template", "input": {"template": "{{refs.ask.output.data.word}}"}},
    ]
    return template(
        "waiting", tasks=tasks, output=[{"name": "word", "type": "text", "value": "{{refs.last.output.text}}"}]
    )


class Flows:
    """Somebody's requests about flows of one project."""

    def __init__(self, client: httpx.AsyncClient, context: AppContext, people: People, person: Person, project: UUID):
        self.client, self.context, self.people, self.person, self.project = client, context, people, person, project

    def by(self, person: Person) -> "Flows":
        return Flows(self.client, self.context, self.people, person, self.project)

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {**self.person.headers, **more.pop("headers", {})}
        if isinstance(body := more.pop("body", None), bytes):
            more["content"], headers["Content-Type"] = body, "application/json"
        elif body is not None:
            more["json"] = body
        return await self.client.request(method, f"/flow{path}", headers=headers, **more)

    async def get(self, path: str, **query: Any) -> Json:
        answer = await self.ask("GET", path, params=query or None)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def create(self, body: Json | bytes) -> str:
        answer = await self.ask("POST", "/workflows", body=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["workflow_id"])

    async def start(self, workflow: str, body: Json | None = None, **headers: str) -> str:
        """The path of a new execution."""
        answer = await self.ask("POST", f"/workflows/{workflow}/execute", body=body or {}, headers=headers)
        assert answer.status_code == 202, answer.text
        return f"/workflows/{workflow}/executions/{answer.json()['execution_id']}"

    async def until(self, path: str, *statuses: str) -> Json:
        """The execution once it has one of the statuses; any of an end by default."""
        wanted = statuses or ("COMPLETED", "FAILED", "CANCELLED")
        async with asyncio.timeout(PATIENCE):
            while True:
                shown = await self.get(path, wait=5)
                if shown["status"] in wanted:
                    return shown
                await asyncio.sleep(0.02)

    async def until_locked(self, count: int) -> None:
        """Until so many transactions wait for a lock."""
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        async with asyncio.timeout(PATIENCE):
            while await self.value(waiting) < count:
                await asyncio.sleep(0.02)

    async def job_of(self, path: str) -> UUID:
        return UUID((await self.get(path))["job_id"])

    async def run(self, statement: str, **values: Any) -> None:
        async with self.context.database.transaction() as session:
            await session.execute(text(statement), values)

    async def value(self, statement: str, **values: Any) -> Any:
        async with self.context.database.statement() as connection:
            return await connection.scalar(text(statement), values)


@pytest.fixture
async def flows(client: httpx.AsyncClient, app_context: AppContext, people: People) -> Flows:
    project = await people.project("flows")
    person = await people.add("member", projects={project: "member"})
    return Flows(client, app_context, people, person, project)


@asynccontextmanager
async def engine_of(context: AppContext) -> AsyncIterator[EmbeddedEngine]:
    registry = Registry()
    registry.add(JOBS, FlowTools(AppAccess(context), FlowAccess(context), context.objects, context.settings))
    await context.hub.start()
    engine = EmbeddedEngine(context.database, context.ledger, registry, lease=5.0)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
        await context.hub.close()


@pytest.fixture
async def engine(app_context: AppContext) -> AsyncIterator[EmbeddedEngine]:
    async with engine_of(app_context) as engine:
        yield engine


def faults(answer: httpx.Response) -> list[tuple[str | None, str]]:
    """The paths and codes of a refusal."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return [(one["param"], one["code"]) for one in answer.json()["errors"]]


def parsed(body: bytes) -> Json:
    return dict(json.loads(body))

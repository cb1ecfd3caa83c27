"""A project with a workflow server that registers and reports by hand, as the real one does over HTTP."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from services.app.context import AppContext
from tests.services.app.conftest import People, Person

START = "2026-01-02T03:04:0{}+00:00"


def told(run_id: str, status: str = "running", at: int = 0, **values: Any) -> dict[str, Any]:
    """A run in a report; `at` (0–9) is the second of its last change."""
    ended = START.format(at) if status != "running" else None
    return {
        "handler_id": f"h-{run_id}", "run_id": run_id, "workflow": "greet", "status": status, "started_at": START.format(0),
        "updated_at": START.format(at), "completed_at": ended, **values,
    }  # fmt: skip


@dataclass
class Place:
    client: httpx.AsyncClient
    context: AppContext
    people: People
    project_id: UUID
    member: Person
    server: dict[str, Any] = field(default_factory=dict)

    async def register(self, person: Person | None = None, **values: Any) -> dict[str, Any]:
        body = {"name": "greeter", "instance": "here", "project_id": str(self.project_id), **values}
        answer = await self.client.post("/workflow-servers", json=body, headers=(person or self.member).headers)
        assert answer.is_success, answer.text
        self.server = answer.json()
        return self.server

    async def send(self, person: Person | None = None, **values: Any) -> httpx.Response:
        path = f"/workflow-servers/{self.server['id']}/report"
        return await self.client.post(path, json=values, headers=(person or self.member).headers)

    async def report(self, *changes: dict[str, Any], **values: Any) -> dict[str, Any]:
        answer = await self.send(changes=list(changes), **values)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def get(self, path: str, person: Person | None = None, **query: Any) -> Any:
        answer = await self.client.get(path, params=query, headers=(person or self.member).headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def runs(self, **query: Any) -> dict[str, str]:
        """The statuses of the runs that are listed."""
        return {one["run_id"]: one["status"] for one in (await self.get("/workflow-runs", **query))["data"]}

    async def run(self, run_id: str) -> dict[str, Any]:
        return next(one for one in (await self.get("/workflow-runs"))["data"] if one["run_id"] == run_id)

    async def cancel(self, run_id: str, person: Person | None = None) -> httpx.Response:
        path = f"/workflow-runs/{(await self.run(run_id))['id']}/cancel"
        return await self.client.post(path, headers=(person or self.member).headers)

    async def execute(self, statement: str, **values: Any) -> Any:
        async with self.context.database.transaction() as session:
            result = await session.execute(text(statement), values)
            return result.scalar() if statement.startswith("SELECT") else None


@pytest.fixture
async def place(client: httpx.AsyncClient, app_context: AppContext, people: People) -> Place:
    project_id = await people.project(uuid4().hex)
    member = await people.add("member", projects={project_id: "member"})
    made = Place(client, app_context, people, project_id, member)
    await made.register()
    return made

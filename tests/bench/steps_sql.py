"""The statements that the app sends for each step of a wizard, recorded from the app itself, to be sent again without it."""

import json
from typing import Any
from uuid import UUID

import httpx
from psycopg.types.json import Jsonb
from sqlalchemy import event

from services.app.context import AppContext
from services.app.main import create_app
from shared.db.engine import Database
from shared.jobs.declare import Registry
from shared.jobs.feed import Feeds
from shared.jobs.hub import Hub
from shared.jobs.ledger import Ledger
from shared.objects.directory import DirectoryStore
from shared.security.envelope import Keyring
from shared.settings import Settings
from tests.bench.server import Stepway
from tests.services.app.conftest import NoClusters

WIZARD = "/models/local-model-workflow"
WORKFLOW = "00000000-0000-4000-8000-000000000000"  # stands for the workflow's id in what is recorded

Statement = tuple[str, dict[str, Any]]


def bodies(draft: int) -> list[dict[str, Any]]:
    """The steps of one draft: begun, filled, and its details changed a few times, as by somebody who types."""
    details = {
        "name": f"model {draft}",
        "uri": "https://models.example/model.gguf",
        "icon": "icons/providers/openai.png",
    }
    return [
        {"workflow_total_steps": 6, "step_number": 1, "modality": "llm"},
        {"step_number": 2, "provider_type": "url"},
        {"step_number": 3, **details},
        *(
            {"step_number": 3, **details, "name": f"model {draft}, version {n}", "author": f"author {n}"}
            for n in range(5)
        ),
    ]


async def record(stepway: Stepway, project_id: str) -> list[list[Statement]]:
    """For each step of a draft, and last for its deletion, the statements of its transaction."""
    database = Database(stepway.database_url, pool_size=2)
    hub = Hub(database)
    context = AppContext(
        settings=Settings(data_dir=stepway.data), database=database, hub=hub, ledger=Ledger(database, hub),
        feeds=Feeds(database, hub), keyring=Keyring.load(stepway.data / "encryption.key"),
        objects=DirectoryStore(stepway.data / "objects"), jobs=Registry(), logs=_NoLogs(),
        clusters=NoClusters(),
    )  # fmt: skip
    app = create_app(context, _ready)
    sent: list[Statement] = []

    @event.listens_for(database.engine.sync_engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if "pg_notify" not in statement:  # sent later, once for many
            sent.append((statement, {name: _plain(value) for name, value in dict(parameters).items()}))

    headers = {"Authorization": f"Bearer {stepway.key}"}
    transport = httpx.ASGITransport(app=app)
    recorded: list[list[Statement]] = []
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
        await client.get("/wizards")  # the caller is known from here on
        workflow: dict[str, Any] = {}
        for body in [*with_project(bodies(0), project_id), None]:
            sent.clear()
            if body is None:
                answer = await client.delete(f"/workflows/{workflow['workflow_id']}")
            else:
                answer = await client.post(WIZARD, json={**workflow, **body})
            answer.raise_for_status()
            workflow = workflow or {"workflow_id": answer.json()["workflow_id"]}
            recorded.append([(text, _renamed(values, workflow["workflow_id"])) for text, values in sent])
    await hub.close()
    await database.close()
    return recorded


def with_project(steps: list[dict[str, Any]], project_id: str) -> list[dict[str, Any]]:
    return [{**step, "project_id": project_id} if step["step_number"] == 3 else step for step in steps]


def _plain(value: Any) -> Any:
    return json.dumps(value.obj) if isinstance(value, Jsonb) else value


def _renamed(values: dict[str, Any], workflow_id: str) -> dict[str, Any]:
    return {name: renamed(value, workflow_id, WORKFLOW) for name, value in values.items()}


def renamed(value: Any, old: str, new: str) -> Any:
    """A parameter with another workflow's id in place of the old one."""
    if isinstance(value, str):
        return value.replace(old, new)
    return UUID(new) if value == UUID(old) else value


class _NoLogs:
    def lines(self, *_arguments: Any) -> Any:
        raise NotImplementedError


async def _ready() -> list[str]:
    return []

"""What is told while the database does not answer: to come again, and nothing of what was sent."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx
import psycopg
from psycopg import sql

from tests import postgres
from tests.services.app.conftest import People


@asynccontextmanager
async def away(database_url: str) -> AsyncIterator[None]:
    """Nobody is connected to the database, nor can connect."""
    name = urlsplit(database_url).path.removeprefix("/")
    allow = sql.SQL("ALTER DATABASE {} WITH allow_connections {}")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    async with await psycopg.AsyncConnection.connect(postgres.server().url, autocommit=True) as admin:
        await admin.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
        await admin.execute(end, [name])
        try:
            yield
        finally:
            await admin.execute(allow.format(sql.Identifier(name), sql.SQL("true")))


async def test_a_database_that_is_away_is_no_fault_of_the_caller(
    client: httpx.AsyncClient, people: People, database_url: str
) -> None:
    admin = await people.add("admin")
    step = {"step_number": 1, "workflow_total_steps": 6, "name": "a secret name"}
    async with away(database_url):
        for _ in range(3):  # connections that broke, and ones that are not made
            answer = await client.post("/models/cloud-model-workflow", json=step, headers=admin.headers)
            assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "unavailable", True)
            assert answer.headers["Retry-After"]
            assert "secret" not in answer.text
    again = await client.post("/models/cloud-model-workflow", json=step, headers=admin.headers)
    assert again.status_code == 200, again.text

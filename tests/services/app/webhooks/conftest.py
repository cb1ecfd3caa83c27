"""Webhooks over a real database, a real receiver, and the loop that delivers between them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from services.app.context import AppContext
from services.app.webhooks.delivery import Delivery
from services.app.webhooks.outbox import Topic, announce, subscribed
from services.app.webhooks.sending import Sender
from tests.services.app.conftest import People, Person
from tests.services.app.webhooks.receiver import Receiver, running


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running() as receiver:
        yield receiver


@pytest.fixture
async def app_context(app_context: AppContext) -> AppContext:
    """With short delays, and the loopback address allowed."""
    quick = {"allow_private_addresses": True, "webhook_retry_delays": [0.01] * 7, "webhook_timeout": 20.0}
    app_context.settings = app_context.settings.model_copy(update=quick)
    return app_context


@dataclass
class Hooks:
    """A project with somebody in it, and what tests do with its webhooks."""

    context: AppContext
    client: httpx.AsyncClient
    project_id: UUID
    member: Person

    async def subscribe(self, url: str, *events: str) -> dict[str, Any]:
        body = {"project_id": str(self.project_id), "url": url, "events": list(events) or ["*"]}
        answer = await self.client.post("/webhooks", json=body, headers=self.member.headers)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def announce(self, event: str, topic: UUID | None = None, sequence: int = 1, **data: Any) -> None:
        async with self.context.database.transaction() as session:
            receivers = await subscribed(session, self.project_id, event)
            told = Topic(self.project_id, topic or uuid4(), sequence)
            await announce(self.context.hub, session, told, event, data, receivers)

    async def deliveries(self, webhook_id: str, **filters: str) -> list[dict[str, Any]]:
        path = f"/webhooks/{webhook_id}/deliveries"
        answer = await self.client.get(path, params={"order_by": "created_at", **filters}, headers=self.member.headers)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    async def until_ended(self, webhook_id: str, count: int = 1) -> list[dict[str, Any]]:
        """The deliveries, once so many have come to an end."""
        async with asyncio.timeout(30):
            while True:
                found = await self.deliveries(webhook_id)
                if sum(one["state"] != "pending" for one in found) >= count:
                    return found
                await asyncio.sleep(0.02)

    async def show(self, webhook_id: str) -> dict[str, Any]:
        return dict((await self.client.get(f"/webhooks/{webhook_id}", headers=self.member.headers)).json())

    async def post(self, path: str) -> httpx.Response:
        return await self.client.post(path, headers=self.member.headers)

    async def run(self, statement: str, **values: Any) -> Any:
        async with self.context.database.transaction() as session:
            return await session.execute(text(statement), values)

    async def messages(self) -> list[Any]:
        return list(await self.run("SELECT * FROM platform.webhook_message ORDER BY number"))


@pytest.fixture
async def hooks(app_context: AppContext, client: httpx.AsyncClient, people: People) -> Hooks:
    project_id = await people.project("p")
    return Hooks(app_context, client, project_id, await people.add("member", projects={project_id: "member"}))


@asynccontextmanager
async def delivering(context: AppContext) -> AsyncIterator[Delivery]:
    """A delivery loop that runs, as in one process."""
    delivery = Delivery(context, Sender(context.settings))
    task = asyncio.create_task(delivery.run())
    try:
        yield delivery
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def delivery(app_context: AppContext) -> AsyncIterator[Delivery]:
    async with delivering(app_context) as delivery:
        yield delivery

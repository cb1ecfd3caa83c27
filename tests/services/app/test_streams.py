"""Streams and waits: bounded per key, and ended when the key, the user or the membership that opened them is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from services.app.context import AppContext
from services.app.identity import authenticate
from services.gateway.limits import Limits
from services.gateway.table import RouteTable
from shared.http.sse import EventStream, StreamSlots
from shared.jobs.hub import end_name
from tests.services.app.authorization import Things, make_things
from tests.services.app.conftest import People, Person

DEFAULTS: dict[str, Any] = EventStream.__init__.__kwdefaults__ or {}
SECONDS = 5.0  # for what takes milliseconds
LOST = {
    "revoked": "UPDATE platform.api_key SET revoked_at = now() WHERE user_id = :user",
    "expired": "UPDATE platform.api_key SET expires_at = now() WHERE user_id = :user",
    "disabled": 'UPDATE platform."user" SET disabled_at = now() WHERE id = :user',
    "deleted": 'DELETE FROM platform."user" WHERE id = :user',
    "no member": "DELETE FROM platform.member WHERE user_id = :user",
}


class EndlessLogs:
    """One line, then silence; `closed` when nobody reads any more."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def lines(self, *_about: Any) -> AsyncIterator[str]:
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            self.closed.set()


class Answer:
    """What one request has got so far."""

    def __init__(self) -> None:
        self.status = 0
        self.started = asyncio.Event()
        self.body = b""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.started.set()
        self.body += message.get("body", b"")


class Streams:
    def __init__(self, app: FastAPI, context: AppContext, things: Things, person: Person) -> None:
        self.app, self.context, self.things, self.person = app, context, things, person
        self.logs = EndlessLogs()
        context.logs = self.logs

    def path(self, what: str) -> str:
        return {
            "job": "/jobs/{pending}/events", "workflow": "/workflows/{draft}/events",
            "logs": "/endpoints/{endpoint}/logs?follow=true", "wait": "/jobs/{pending}?wait=60",
        }[what].format_map(self.things.names)  # fmt: skip

    @asynccontextmanager
    async def open(self, what: str) -> AsyncIterator[tuple[Answer, "asyncio.Task[None]"]]:
        path, _, query = self.path(what).partition("?")
        headers = [(b"host", b"test"), (b"authorization", f"Bearer {self.person.key}".encode())]
        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "headers": headers, "scheme": "http", "server": ("test", 80), "client": ("127.0.0.1", 1), "http_version": "1.1",
            "root_path": "", "asgi": {"version": "3.0"},
        }  # fmt: skip
        answer = Answer()
        bodies = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if not bodies:
                await asyncio.Event().wait()
            return bodies.pop()

        task = asyncio.create_task(self.app(scope, receive, answer.send))
        try:
            yield answer, task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def lose(self, how: str) -> None:
        async with self.context.database.transaction() as session:
            await session.execute(text(LOST[how]), {"user": self.person.id})


@pytest.fixture
async def streams(app: FastAPI, app_context: AppContext, people: People, routes: RouteTable) -> Streams:
    things = await make_things(app_context, people, routes)
    person = await people.add("member", projects={things.project: "member"})
    async with app_context.database.transaction() as session:
        values = {"user": person.id, "draft": UUID(things.names["draft"])}
        await session.execute(text("UPDATE platform.workflow SET owner_id = :user WHERE id = :draft"), values)
    return Streams(app, app_context, things, person)


@pytest.mark.parametrize("how", LOST)
@pytest.mark.parametrize("what", ["job", "workflow", "logs"])
async def test_a_stream_ends_with_what_allowed_it(
    streams: Streams, monkeypatch: pytest.MonkeyPatch, what: str, how: str
) -> None:
    monkeypatch.setitem(DEFAULTS, "recheck", 0.02)
    monkeypatch.setattr(authenticate, "REMEMBER_SECONDS", 0.0)
    async with streams.open(what) as (answer, task), asyncio.timeout(SECONDS):
        await answer.started.wait()
        assert answer.status == 200
        with pytest.raises(TimeoutError):  # it goes on while all is well
            await asyncio.wait_for(asyncio.shield(task), 0.1)
        await streams.lose(how)
        await task
        if what == "logs":
            assert streams.logs.closed.is_set()
            assert answer.body == b"first\n"


@pytest.mark.parametrize("how", LOST)
async def test_a_wait_ends_with_what_allowed_it(streams: Streams, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(authenticate, "REMEMBER_SECONDS", 0.0)
    async with streams.open("wait") as (answer, task), asyncio.timeout(SECONDS):
        while not streams.app.state.stream_slots._open:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        await streams.lose(how)
        streams.context.hub.wake(end_name(UUID(streams.things.names["pending"])))
        await task
        assert answer.status == 401


@pytest.mark.parametrize("second", ["job", "workflow", "logs", "wait"])
@pytest.mark.parametrize("first", ["job", "logs", "wait"])
async def test_streams_of_a_key_are_bounded(streams: Streams, first: str, second: str) -> None:
    slots = streams.app.state.stream_slots = StreamSlots(per_key=1)
    async with asyncio.timeout(SECONDS):
        async with streams.open(first) as (opened, _):
            while not slots._open:
                await asyncio.sleep(0.01)
            async with streams.open(second) as (refused, task):
                await task
                assert refused.status == 429
            assert opened.status in (0, 200)
        assert not slots._open


def test_they_end_within_a_minute(app: FastAPI) -> None:
    """The pauses that the tests above have shortened."""
    assert DEFAULTS["recheck"] + authenticate.REMEMBER_SECONDS < 60
    limits = Limits()
    assert limits.recheck_seconds + authenticate.REMEMBER_SECONDS < 60
    assert limits.cache_seconds + limits.recheck_seconds + authenticate.REMEMBER_SECONDS < 60
    assert app.state.stream_slots._per_key <= 100

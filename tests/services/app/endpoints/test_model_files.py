"""The routes of a model's files: who may have which bytes."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from services.app.context import AppContext
from services.app.endpoints.model_files import Limits, Transfers
from shared.objects.store import blob_key, manifest_key
from shared.security.loader_token import open_session, token_of
from tests.services.app.conftest import People
from tests.services.app.endpoints.conftest import (
    CONTENTS,
    MIB,
    Running,
    Served,
    SlowStore,
    bearer,
    make_served,
    running,
    session_of,
)

WEIGHTS = CONTENTS["deep/weights.gguf"]
SIZE = len(WEIGHTS)


async def test_the_exchange_lists_the_files_of_the_digest(client: httpx.AsyncClient, served: Served) -> None:
    answer = await client.post(served.path, headers=served.bearer)
    assert answer.status_code == 200
    said = answer.json()
    assert 60 <= said["expires_in"] <= 900
    assert said["files"] == [
        {"path": file.path, "size": file.size, "sha256": file.sha256, "href": f"model-files/{number}"}
        for number, file in enumerate(served.files)
    ]
    session = bearer(said["token"])
    for number, file in enumerate(served.files):
        got = await client.get(f"{served.path}/{number}", headers=session)
        assert (got.status_code, got.content) == (200, CONTENTS[file.path])
        assert got.headers["etag"] == f'"{file.sha256}"'
        assert got.headers["accept-ranges"] == "bytes"
        assert got.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-", 0, SIZE),
        ("bytes=1-", 1, SIZE),
        ("bytes=5-9", 5, 10),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        ("bytes=7-99999999999", 7, SIZE),
        ("bytes=-3", SIZE - 3, SIZE),
        ("bytes=-99999999999", 0, SIZE),
    ],
)
async def test_a_range(client: httpx.AsyncClient, served: Served, asked: str, start: int, end: int) -> None:
    session = await session_of(client, served)
    got = await client.get(f"{served.path}/1", headers={**session, "Range": asked})
    assert (got.status_code, got.content) == (206, WEIGHTS[start:end])
    assert got.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"


@pytest.mark.parametrize(
    "asked", ["bytes=9-5", "bytes=0-1,3-4", "bytes=", "bytes=-", "lines=1-2", "bytes=a-b", "bytes=0x1-"]
)
async def test_a_range_that_is_none_is_ignored(client: httpx.AsyncClient, served: Served, asked: str) -> None:
    session = await session_of(client, served)
    got = await client.get(f"{served.path}/0", headers={**session, "Range": asked})
    assert (got.status_code, got.content) == (200, CONTENTS["config.json"])


@pytest.mark.parametrize(("number", "asked"), [(1, f"bytes={SIZE}-"), (1, "bytes=-0"), (2, "bytes=0-")])
async def test_a_range_outside_the_file(client: httpx.AsyncClient, served: Served, number: int, asked: str) -> None:
    session = await session_of(client, served)
    got = await client.get(f"{served.path}/{number}", headers={**session, "Range": asked})
    assert (got.status_code, got.json()["code"]) == (416, "range_not_satisfiable")
    assert got.headers["content-range"] == f"bytes */{served.files[number].size}"


async def test_a_range_of_another_version_is_the_whole_file(client: httpx.AsyncClient, served: Served) -> None:
    session = await session_of(client, served)
    asked = {**session, "Range": "bytes=4-"}
    got = await client.get(f"{served.path}/0", headers={**asked, "If-Range": '"another"'})
    assert (got.status_code, got.content) == (200, CONTENTS["config.json"])
    got = await client.get(f"{served.path}/0", headers={**asked, "If-Range": f'"{served.files[0].sha256}"'})
    assert (got.status_code, got.content) == (206, CONTENTS["config.json"][4:])


# --- who may not


async def test_only_the_endpoints_own_token_is_exchanged(
    client: httpx.AsyncClient, served: Served, people: People
) -> None:
    admin = await people.add("admin")
    session = await session_of(client, served)
    for headers in (
        {}, admin.headers, session, bearer(served.worker_key), bearer(token_of(served.worker_key, uuid4())),
        bearer(token_of("another key", served.id)), bearer(served.token[:-1]), {"Authorization": served.token},
        {"Authorization": f"Basic {served.token}"}, {"Cookie": f"stepway_session={served.token}"},
        {"X-Api-Key": served.token},
    ):  # fmt: skip
        answer = await client.post(served.path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), headers
    unknown = await client.post(f"/endpoints/{uuid4()}/model-files", headers=served.bearer)
    wrong = await client.post(served.path, headers=bearer("x"))
    assert (unknown.status_code, unknown.json()) == (401, wrong.json())


async def test_only_a_session_of_the_endpoint_reads(
    client: httpx.AsyncClient, app_context: AppContext, served: Served, people: People, store: SlowStore
) -> None:
    admin = await people.add("admin")
    other = await make_served(app_context, people, store)
    key = app_context.keyring.derive("sessions of model files")
    assert (
        await client.get(f"{served.path}/0", headers=bearer(open_session(key, served.id, served.digest, 60)))
    ).is_success
    for headers in (
        {}, admin.headers, served.bearer, await session_of(client, other),
        bearer(open_session(key, served.id, served.digest, -1)), bearer(open_session(key, served.id, "b" * 64, 60)),
        bearer(open_session(b"k" * 32, served.id, served.digest, 60)),
    ):  # fmt: skip
        answer = await client.get(f"{served.path}/0", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), headers
    app_context.keyring.rotate()
    stale = await client.get(f"{served.path}/0", headers=bearer(open_session(key, served.id, served.digest, 60)))
    assert stale.status_code == 401
    assert (await client.get(f"{served.path}/0", headers=await session_of(client, served))).is_success


async def test_who_shows_nothing_learns_nothing(client: httpx.AsyncClient) -> None:
    assert (await client.post("/endpoints/no-id/model-files")).status_code == 401
    assert (await client.get("/endpoints/no-id/model-files/no-number")).status_code == 401


async def test_tokens_are_of_no_use_elsewhere(client: httpx.AsyncClient, served: Served) -> None:
    session = await session_of(client, served)
    for headers in (served.bearer, session):
        for path in ("/me", "/endpoints", f"/endpoints/{served.id}", f"/endpoints/{served.id}/v1/models"):
            assert (await client.get(path, headers=headers)).status_code == 401, path


async def test_no_path_of_a_request_reaches_the_store(client: httpx.AsyncClient, served: Served) -> None:
    session = await session_of(client, served)
    for name in (
        "3",
        "-1",
        "99999999999999999999",
        "config.json",
        "..",
        "%2e%2e%2f1",
        "1%00",
        "0x1",
        served.files[0].sha256,
    ):
        answer = await client.get(f"{served.path}/{name}", headers=session)
        assert answer.status_code in (401, 404, 405, 422), name
        assert CONTENTS["config.json"] not in answer.content


@pytest.mark.parametrize("phase", ["deleting", "deleted"])
async def test_an_endpoint_that_goes_gets_nothing(client: httpx.AsyncClient, served: Served, phase: str) -> None:
    session = await session_of(client, served)
    await served.change(phase=phase, state=phase)
    for answer in (
        await client.post(served.path, headers=served.bearer),
        await client.get(f"{served.path}/0", headers=session),
    ):
        assert (answer.status_code, answer.json()["code"]) == (410, "model_files_gone")
    assert (await client.post(served.path, headers=bearer("x"))).status_code == 401


async def test_a_new_worker_key_revokes_the_token(
    client: httpx.AsyncClient, served: Served, app_context: AppContext
) -> None:
    sealed = app_context.keyring.seal(b"another key", f"endpoint:{served.id}")
    await served.change(sealed=sealed)
    assert (await client.post(served.path, headers=served.bearer)).status_code == 401


async def test_a_session_ends_with_the_digest_that_it_is_for(
    client: httpx.AsyncClient, served: Served, store: SlowStore
) -> None:
    session = await session_of(client, served)
    await served.change(digest="c" * 64)
    assert (await client.get(f"{served.path}/0", headers=session)).status_code == 401


async def test_a_model_that_is_gone(client: httpx.AsyncClient, served: Served, store: SlowStore) -> None:
    session = await session_of(client, served)

    async def statuses() -> list[int]:
        exchange = await client.post(served.path, headers=served.bearer)
        return [exchange.status_code, (await client.get(f"{served.path}/1", headers=session)).status_code]

    await store.delete(blob_key(served.files[1].sha256))
    assert await statuses() == [410, 410]
    await store.delete(manifest_key(served.digest))
    assert await statuses() == [410, 410]
    await served.delete_model()
    assert await statuses() == [410, 410]


async def test_a_cloud_model_has_no_files(client: httpx.AsyncClient, served: Served) -> None:
    await served.change(digest=None)
    answer = await client.post(served.path, headers=served.bearer)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# --- transfers


async def connect(
    running: Running, served: Served, session: dict[str, str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that asks for the weights, reads the head of the answer, and then nothing."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    authorization = session["Authorization"]
    writer.write(f"GET {served.path}/0 HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    return reader, writer


@pytest.fixture
async def large(app_context: AppContext, people: People, store: SlowStore) -> Served:
    """A model of 64 MiB, more than a connection holds."""
    return await make_served(app_context, people, store, {"weights.gguf": bytes(64 * MIB)})


def transfers_of(logs: Any) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] == "model_file_sent"]


async def test_a_client_that_goes_leaves_nothing_open(app_context: AppContext, large: Served, store: SlowStore) -> None:
    async with running(app_context) as app:
        async with httpx.AsyncClient(base_url=app.url, trust_env=False) as client:
            session = await session_of(client, large)
        store.until = 4 * MIB
        with capture_logs() as logs:
            _, writer = await connect(app, large, session)
            assert store.open_blobs()
            writer.transport.abort()
            await app.idle()
    assert store.open_blobs() == []
    (line,) = transfers_of(logs)
    assert line["end"] == "client_gone"
    assert line["sent"] < line["length"] == 64 * MIB


async def test_a_client_that_takes_nothing_is_cut_off(app_context: AppContext, large: Served, store: SlowStore) -> None:
    async with running(app_context, limits=Limits(stalled=0.2)) as app:
        async with httpx.AsyncClient(base_url=app.url, trust_env=False) as client:
            session = await session_of(client, large)
        with capture_logs() as logs:
            _, writer = await connect(app, large, session)
            await app.idle()
            writer.transport.abort()
    (line,) = transfers_of(logs)
    assert line["end"] == "stalled"
    assert store.given < 32 * MIB  # no more than the connection held
    assert store.open_blobs() == []


async def test_a_transfer_ends_when_the_endpoint_is_deleted(
    app_context: AppContext, large: Served, store: SlowStore
) -> None:
    limits = Limits(recheck=0.05)
    async with (
        running(app_context, limits=limits) as app,
        httpx.AsyncClient(base_url=app.url, trust_env=False) as client,
    ):
        session = await session_of(client, large)
        store.until = 4 * MIB
        with capture_logs() as logs:
            async with client.stream("GET", f"{large.path}/0", headers=session) as answer:
                await large.change(phase="deleting")
                with pytest.raises(httpx.RemoteProtocolError):
                    await answer.aread()
            await app.idle()
    assert [line["end"] for line in transfers_of(logs)] == ["model_files_gone"]


async def test_a_blob_that_lost_its_end_is_no_whole_answer(app_context: AppContext, served: Served) -> None:
    served.store.overwrite(served.files[1].sha256, WEIGHTS[: 2 * MIB])
    async with running(app_context) as app, httpx.AsyncClient(base_url=app.url, trust_env=False) as client:
        session = await session_of(client, served)
        with capture_logs() as logs, pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"{served.path}/1", headers=session)
        await app.idle()
    assert [line["end"] for line in transfers_of(logs)] == ["file_too_short"]


@pytest.mark.parametrize("limits", [Limits(per_endpoint=2), Limits(in_all=2)])
async def test_no_more_transfers_at_once_than_may_be(
    client: httpx.AsyncClient, app: FastAPI, served: Served, store: SlowStore, limits: Limits
) -> None:
    app.state.transfers = Transfers(limits)
    session = await session_of(client, served)
    store.until = 0
    held = [asyncio.create_task(client.get(f"{served.path}/1", headers=session)) for _ in range(2)]
    while app.state.transfers.running.total() < 2:
        await asyncio.sleep(0.002)
    refused = await client.get(f"{served.path}/0", headers=session)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_transfers")
    assert int(refused.headers["retry-after"]) > 0
    store.go.set()
    assert [(await one).status_code for one in held] == [200, 200]
    assert (await client.get(f"{served.path}/0", headers=session)).status_code == 200


async def test_each_transfer_is_one_line_without_a_token(client: httpx.AsyncClient, served: Served) -> None:
    with capture_logs() as logs:
        session = await session_of(client, served)
        await client.get(f"{served.path}/1", headers={**session, "Range": "bytes=1000-"})
    (line,) = transfers_of(logs)
    assert (line["endpoint_id"], line["start"], line["sent"], line["end"]) == (
        str(served.id),
        1000,
        SIZE - 1000,
        "done",
    )
    said = json.dumps(logs, default=str)
    assert served.token not in said
    assert session["Authorization"].removeprefix("Bearer ") not in said

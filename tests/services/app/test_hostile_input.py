"""What no client should send, to every route that takes something: always a refusal, never a fault of ours."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from services.app.context import AppContext
from services.gateway.table import RouteTable
from tests.services.app.authorization import TABLE, Row, Things, make_things
from tests.services.app.conftest import People, Person
from tests.services.app.test_authorization import filled

JSON = "application/json"
# Of each route one row; the gateway judges the body only when it has the endpoint. An uploaded file may be anything.
WRITES = list(
    {
        (row.method, row.path): row
        for row in TABLE
        if row.method in ("POST", "PATCH", "PUT") and row.body and not row.path.startswith("/flow/files")
    }.values()
)
# What some routes do take: nothing stands for no inputs, and for an answer without data.
TAKEN = {
    "/flow/workflows/{flow}/execute": {"empty"}, "/flow/workflows/{flow}/executions": {"empty"},
    "/flow/workflows/{flow}/executions/{execution}/events/{event}": {"empty"},
}  # fmt: skip
BODILESS = [row for row in TABLE if row.method == "POST" and not row.body]
LISTS = ("/models", "/models/catalog", "/models/providers", "/clusters", "/endpoints", "/jobs", "/workflows", "/audit", "/users",
         "/keys", "/projects", "/credentials", "/templates", "/icons", "/jobs/{failed}", "/endpoints/{endpoint}/logs",
         "/projects/{project}/members", "/models/{model}/scans")  # fmt: skip
QUERIED = [row for row in TABLE if row.method == "GET" and row.path in LISTS]


def _raw(body: dict[str, Any]) -> dict[str, bytes]:
    """Bodies that are not JSON as we read it; `body` is one that the route takes."""
    name, good = next(iter(body)), json.dumps(body).encode()
    return {
        "empty": b"", "null": b"null", "a list": b"[]", "a text": b'"x"', "cut": good[:-1], "twice": good + good,
        "not UTF-8": good.replace(b"{", b'{"\xff": 1, ', 1), "NUL": b'{"%s": "a\\u0000b"}' % name.encode(),
        "a raw NUL": b'{"%s": "a\x00b"}' % name.encode(), "lone surrogate": b'{"%s": "\\ud800"}' % name.encode(),
        "surrogate in a key": b'{"\\udfff": 1}', "NaN": b'{"%s": NaN}' % name.encode(),
        "Infinity": b'{"%s": -Infinity}' % name.encode(), "1e999": b'{"%s": 1e999}' % name.encode(),
        "huge integer": b'{"%s": %s}' % (name.encode(), b"9" * 5000), "duplicate key": good[:-1] + b', "%s": 1}' % name.encode(),
        "deep": b'{"%s": %s1%s}' % (name.encode(), b"[" * 5000, b"]" * 5000),
        "deep objects": b'{"a":' * 3000 + b"1" + b"}" * 3000, "too large": b'{"%s": "%s"}' % (name.encode(), b"x" * 1_100_000),
        "a comment": b"// x\n" + good, "BOM": b"\xef\xbb\xbf" + good,
    }  # fmt: skip


NEVER: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 2**53, -(2**63), "", " ", "x" * 100_000, "\u202eevil", "\ufeff", "\u200b", "\U000e0001", "%00",
    "../../etc/passwd", "'; DROP TABLE x; --", "${jndi:x}", "{{7*7}}", "a\r\nSet-Cookie: x=y", "\u2028", "ｆｕｌｌ",
    "0" * 36, str(uuid4()), [], [None], [[]], {}, {"a": {"b": None}}, [{"name": None}], {"$ne": 1}, ["x"] * 1000,
)  # fmt: skip


@pytest.fixture
async def admin(people: People) -> Person:
    return await people.add("admin")


@pytest.fixture
async def things(app_context: AppContext, people: People, routes: RouteTable) -> Things:
    return await make_things(app_context, people, routes)


async def _send(
    client: httpx.AsyncClient, row: Row, path: str, key: str, content: bytes, **headers: str
) -> httpx.Response:
    named = {
        "Authorization": f"Bearer {key}",
        "Content-Type": JSON,
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    return await client.request(row.method, path, content=content, headers=named)


@pytest.mark.parametrize("row", WRITES, ids=str)
async def test_bodies(client: httpx.AsyncClient, admin: Person, things: Things, row: Row) -> None:
    names = {**things.names, "own_key": admin.key}
    path, body = filled(row.path, names), filled(row.body, names)
    for what, raw in _raw(body).items():
        sent = raw * 4 if "/v1/" in path and what == "too large" else raw  # prompts may be longer
        answer = await _send(client, row, path, admin.key, sent)
        if what in TAKEN.get(row.path, ()):
            assert answer.is_success, (what, answer.text)
            continue
        assert 400 <= answer.status_code < 500, (what, answer.text)
        assert len(answer.content) < 5000, what  # no echo
    good = json.dumps(body).encode()
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
        "application/json; charset=utf-16",
        "*/*",
    ):
        answer = await _send(client, row, path, admin.key, good, Content_Type=content_type)
        assert answer.status_code == 415, content_type
    for encoding in ("gzip", "br", "deflate", "gzip, identity"):
        assert (await _send(client, row, path, admin.key, good, Content_Encoding=encoding)).status_code == 415


@pytest.mark.parametrize("row", [row for row in WRITES if "/v1/" not in row.path], ids=str)
async def test_values(client: httpx.AsyncClient, admin: Person, things: Things, row: Row) -> None:
    names = {**things.names, "own_key": admin.key}
    path, body = filled(row.path, names), filled(row.body, names)
    for field in [*body, "unknown\u202e", "__proto__", "x" * 5000]:
        for value in NEVER:
            answer = await _send(client, row, path, admin.key, json.dumps({**body, field: value}).encode())
            assert answer.status_code < 500, (field, value, answer.text)
            if answer.status_code >= 400:
                assert len(answer.content) < 20_000, (field, value)


TEXTS = (b"a%00b", b"%ED%A0%80", b"%FF", b"%25", b"'%22", b"9" * 5000, b"-1", b"NaN", b"1e999", b"x" * 8000,
         b"name;DROP+TABLE+x", b"-created_at,id", b"%5B%5D")  # fmt: skip
PARAMETERS = {
    "limit", "cursor", "search", "order_by", "state", "name", "project_id", "wait", "tail", "worker", "type", "kind", "count",
    "since", "until", "modality", "tag", "action", "category", "follow", "status", "provider_id",
}  # fmt: skip


@pytest.mark.parametrize("row", QUERIED, ids=str)
async def test_queries(client: httpx.AsyncClient, admin: Person, things: Things, row: Row) -> None:
    """One bad parameter among unknown ones, so that each is looked at."""
    path = filled(row.path, things.names).split("?")[0]
    for value in TEXTS:
        for name in (
            PARAMETERS if value in TEXTS[:3] else ("limit", "cursor", "search", "order_by", "wait", "tail", "worker")
        ):
            url = httpx.URL(f"http://test{path}", query=b"%s=%s" % (name.encode(), value))
            answer = await client.get(url, headers=admin.headers)
            assert answer.status_code < 500, (name, value, answer.text)
    for name, text in {"since": "0001-01-01T00:00:00+23:59", "until": "9999-12-31T23:59:59-23:59"}.items():
        assert (await client.get(path, params={name: text}, headers=admin.headers)).status_code < 500


@pytest.mark.parametrize("row", [*WRITES, *BODILESS], ids=str)
async def test_headers(client: httpx.AsyncClient, admin: Person, things: Things, row: Row) -> None:
    path, body = (
        filled(row.path, things.names),
        json.dumps(filled(row.body or {}, {**things.names, "own_key": admin.key})),
    )
    for name, value in (
        ("If-Match", '"' + "9" * 5000 + '"'), ("If-Match", '"\u00e9"'), ("If-Match", '"-1"'), ("Idempotency-Key", ""),
        ("Idempotency-Key", "x" * 300), ("Idempotency-Key", "a b"), ("X-Request-Id", "a\tb"),
        ("Cookie", "stepway_session=\u00e9"),
        ("Authorization", "Bearer \u00e9"), ("Authorization", "Basic eDp5"), ("Authorization", "Bearer " + "x" * 9000),
        ("Host", "evil.example"), ("Host", "test.evil.example"), ("Host", ""), ("Host", "test@evil"), ("Origin", "http://[::1"),
        ("Content-Length", "-1"), ("X-Forwarded-Host", "evil"), ("Last-Event-ID", "9" * 40),
    ):  # fmt: skip
        headers = {"Authorization": f"Bearer {admin.key}", "Content-Type": JSON, name: value}
        answer = await client.request(
            row.method, path, content=body, headers=[(k.encode(), v.encode()) for k, v in headers.items()]
        )
        assert answer.status_code < 500 or (answer.status_code == 503 and "/v1/" in path), (name, value, answer.text)
        if name == "Host":
            assert (answer.status_code, answer.json()["code"]) == (400, "host_not_allowed"), value
        client.cookies.clear()


async def test_a_body_without_a_length_is_bounded(client: httpx.AsyncClient, admin: Person) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 65536
            yield b" " * 65536

    answer = await client.post("/projects", content=endless(), headers={**admin.headers, "Content-Type": JSON})
    assert (answer.status_code, sent <= 3 * 1024 * 1024) == (413, True)


@pytest.mark.parametrize("path", [
    "/icons/../../main.py", "/icons/%2e%2e/%2e%2e/main.py", "/icons//etc/passwd", "/icons/providers/openai.png%00", "/icons/%ff",
    "/icons/providers", "/endpoints/{endpoint}/workers/..%2f..%2fetc", "/endpoints/{endpoint}/workers/%00",
    "/endpoints/{endpoint}/logs?worker=../../admin.key", "/endpoints/{endpoint}/logs?worker={endpoint}-99999",
    "/endpoints/{endpoint}/logs?worker=\u0661", "/endpoints/..%2f/v1/models", "/endpoints/{endpoint}/v1/..%2f..%2fmodels",
    "/endpoints/{endpoint}/v1/models/%00", "/jobs/%00", "/jobs/00000000", "/wizards/..%2fx", "/models/{endpoint}",
])  # fmt: skip
async def test_paths(client: httpx.AsyncClient, admin: Person, things: Things, path: str) -> None:
    answer = await client.get(path.replace("{endpoint}", things.names["endpoint"]), headers=admin.headers)
    assert answer.status_code == 404, answer.text


@pytest.mark.parametrize("field", ["uri", "ingress_url"])
@pytest.mark.parametrize("secret", [
    "https://user:hunter2@host/model.gguf", "https://host/model.gguf?token=hunter2", "https://host/m.gguf?X-Amz-Signature=hunter2",
    "hf_hunter2hunter2hunter2hunter2", "https://hunter2@host/",
])  # fmt: skip
async def test_secrets_in_addresses_are_kept_nowhere(
    client: httpx.AsyncClient, admin: Person, app_context: AppContext, field: str, secret: str
) -> None:
    """Also where the source is not known yet, and never in an answer."""
    routes = {
        "uri": ("/models/local-model-workflow", "/models/cloud-model-workflow"),
        "ingress_url": ("/clusters/clusters",),
    }
    for path in routes[field]:
        body = {"workflow_total_steps": 6, "step_number": 3, field: secret}
        answer = await client.post(path, json=body, headers=admin.headers)
        assert "hunter2" not in answer.text
        assert answer.status_code == 422, (path, answer.text)
    assert (await client.get("/workflows", headers=admin.headers)).json()["total"] == 0

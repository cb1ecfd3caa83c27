"""Typed routes over `StrictRoute`, and every refusal as problem+json."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Form, HTTPException
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shared.errors import Problem
from shared.http import problems
from shared.http.bodies import FormBool, StrictRoute, UploadedFile
from shared.http.problems import faults_of
from tests.shared.http.conftest import client_of


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=10)
    count: int = Field(0, ge=0, le=5)
    kind: Literal["a", "b"] = "a"
    owner: UUID | None = None
    tags: list[str] = []

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value == "reserved":
            raise ValueError("is reserved")
        return value


class Upload(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    on: FormBool = False
    count: int = 1
    file: UploadedFile | None = None


router = APIRouter(route_class=StrictRoute)


@router.post("/things")
async def _create(body: Thing) -> Thing:
    return body


@router.post("/optional")
async def _optional(body: Thing | None = None) -> dict[str, bool]:
    return {"given": body is not None}


@router.post("/small", max_body_size=20)
async def _small(body: dict[str, Any]) -> dict[str, Any]:
    return body


@router.post("/uploads")
async def _upload(form: Annotated[Upload, Form(media_type="multipart/form-data")]) -> dict[str, Any]:
    return {"name": form.name, "on": form.on, "count": form.count, "file": form.file.name if form.file else None}


@router.get("/things/{thing_id}")
async def _show(thing_id: UUID, limit: int = 1) -> dict[str, Any]:
    return {"id": thing_id, "limit": limit}


@router.get("/raise/{what}")
async def _raise(what: str) -> None:
    if what == "problem":
        raise Problem("name_taken", "The name is in use.", param="name", headers={"X-Extra": "1"})
    if what == "crash":
        raise RuntimeError("hunter2")
    if what == "surrogate":
        raise Problem("not_found", "\ud800")
    raise HTTPException(int(what))


app = FastAPI()
problems.install(app)
app.include_router(router, prefix="/api")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


async def test_a_typed_body(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/things", json={"name": "x", "count": 2})
    assert (answer.status_code, answer.json()["count"]) == (200, 2)


@pytest.mark.parametrize(
    ("kind", "raw", "status", "code"),
    [
        ("application/json", b"", 400, "invalid_json"),
        ("application/json", b'{"name": "x",}', 400, "invalid_json"),
        ("application/json", b'{"name": "x", "name": "x"}', 400, "invalid_json"),
        ("application/json", b'{"name": "\\ud800"}', 400, "invalid_json"),
        ("application/json", b" " * (1 << 20) + b"{}", 413, "body_too_large"),
        ("application/json; charset=utf-16", b"{}", 415, "unsupported_media_type"),
        ("text/plain", b'{"name": "x"}', 415, "unsupported_media_type"),
        ("text/plain", b"", 415, "unsupported_media_type"),
        (None, b'{"name": "x"}', 415, "unsupported_media_type"),
        (None, b"", 400, "invalid_json"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 415, "unsupported_media_type"),
        ("application/json", b"[]", 400, "invalid_json"),
        ("application/json", b"null", 400, "invalid_json"),
    ],
)
async def test_refuses_a_body(client: httpx.AsyncClient, kind: str | None, raw: bytes, status: int, code: str) -> None:
    answer = await client.post("/api/things", content=raw, headers={"Content-Type": kind} if kind else {})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "kind", ["application/json; charset=UTF-8", "Application/JSON", "application/merge-patch+json"]
)
async def test_spellings_of_json(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/api/things", content=b'{"name": "x"}', headers={"Content-Type": kind})
    assert answer.status_code == 200


async def test_encodings_are_refused(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert (await client.post("/api/things", content=b"x", headers=headers)).status_code == 415


async def test_an_optional_body(client: httpx.AsyncClient) -> None:
    assert (await client.post("/api/optional")).json() == {"given": False}
    assert (await client.post("/api/optional", json={"name": "x"})).json() == {"given": True}
    assert (await client.post("/api/optional", content=b"x", headers={"Content-Type": "text/plain"})).status_code == 415


async def test_a_limit_of_the_route_counts_chunks(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"     "

    assert (await client.post("/api/small", json={"a": 1})).status_code == 200
    answer = await client.post("/api/small", content=chunks(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


async def test_a_typed_form(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/api/uploads", data={"name": '"n"', "on": "TRUE", "count": ""}, files={"file": ("a/b.yaml", b"x")}
    )
    assert answer.json() == {"name": "n", "on": True, "count": 1, "file": "b.yaml"}
    answer = await client.post("/api/uploads", data={"on": "yes", "more": "1"}, files={"file": ("b", b"x")})
    assert answer.status_code == 422
    assert {(fault["param"], fault["code"]) for fault in answer.json()["errors"]} == {
        ("name", "required"),
        ("more", "unknown_field"),
        ("on", "invalid_type"),
    }
    assert (await client.post("/api/uploads", json={"name": "n"})).status_code == 415


async def test_the_description_is_true() -> None:
    paths = app.openapi()["paths"]
    assert list(paths["/api/things"]["post"]["requestBody"]["content"]) == ["application/json"]
    assert list(paths["/api/uploads"]["post"]["requestBody"]["content"]) == ["multipart/form-data"]
    for path, methods in paths.items():
        for operation in methods.values():
            assert set(operation["responses"]) == {"200", "default"}, path
            assert list(operation["responses"]["default"]["content"]) == ["application/problem+json"]


async def test_faults_are_listed_without_the_values(client: httpx.AsyncClient) -> None:
    body = {"name": "hunter2" * 5, "count": -1, "kind": "hunter2", "owner": "hunter2", "tags": ["x", 1], "hunter": 1}
    answer = await client.post("/api/things", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "validation_failed")
    assert {fault["param"]: (fault["code"], fault["message"]) for fault in problem["errors"]} == {
        "name": ("too_long", "must have at most 10 characters"),
        "count": ("out_of_range", "must be at least 0"),
        "kind": ("not_allowed", "must be 'a' or 'b'"),
        "owner": ("invalid_format", "must be a UUID"),
        "tags.1": ("invalid_type", "must be a text"),
        "hunter": ("unknown_field", "is not known here"),
    }
    assert "hunter2" not in answer.text


async def test_only_unknown_fields(client: httpx.AsyncClient) -> None:
    problem = (await client.post("/api/things", json={"name": "x", "z": 1, "a b\n": 2})).json()
    assert problem["code"] == "unknown_field"
    assert [fault["param"] for fault in problem["errors"]] == ["z", None]


async def test_the_words_of_a_validator_are_kept(client: httpx.AsyncClient) -> None:
    problem = (await client.post("/api/things", json={"name": "reserved"})).json()
    assert (problem["param"], problem["detail"]) == ("name", "name is reserved.")


async def test_path_and_query(client: httpx.AsyncClient) -> None:
    unknown = await client.get("/api/things/not-a-uuid?limit=x")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    wrong = await client.get(f"/api/things/{uuid4()}?limit=x")
    assert (wrong.status_code, wrong.json()["param"]) == (400, "limit")


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "invalid_request"), (401, "unauthenticated"), (403, "forbidden"), (404, "not_found"), (409, "conflict"),
     (413, "body_too_large"), (429, "rate_limited"), (500, "internal"), (503, "unavailable")],
)  # fmt: skip
async def test_plain_http_exceptions(client: httpx.AsyncClient, status: int, code: str) -> None:
    answer = await client.get(f"/api/raise/{status}")
    assert (answer.status_code, answer.json()["code"], answer.json()["status"]) == (status, code, status)
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert ("retry-after" in answer.headers) == (status in (429, 503))


async def test_paths_and_methods_that_are_not_there(client: httpx.AsyncClient) -> None:
    assert (await client.get("/nowhere")).json()["code"] == "not_found"
    answer = await client.put("/api/things")
    assert (answer.json()["code"], answer.headers["allow"]) == ("method_not_allowed", "POST")


async def test_a_problem_keeps_its_headers(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/raise/problem")
    assert (answer.status_code, answer.headers["x-extra"], answer.json()["param"]) == (409, "1", "name")
    assert answer.headers["cache-control"] == "no-store"


async def test_a_fault_of_ours_says_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/raise/crash")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "hunter2" not in answer.text


async def test_no_text_can_break_the_answer(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/raise/surrogate")).status_code == 404


def test_faults_of_a_nested_model() -> None:
    with pytest.raises(ValidationError) as caught:
        Thing.model_validate({"name": "", "count": 9})
    faults = faults_of(caught.value, prefix="deploy_config", step=3)
    assert [(fault.param, fault.code, fault.step) for fault in faults] == [
        ("deploy_config.name", "too_short", 3),
        ("deploy_config.count", "out_of_range", 3),
    ]


async def _post(raw: bytes, kind: str) -> int:
    async with client_of(app) as client:
        answer = await client.post("/api/things", content=raw, headers={"Content-Type": kind})
    json.loads(answer.content)
    return answer.status_code


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=60) | st.text(max_size=30).map(lambda text: json.dumps({"name": text, text: 1}).encode()))
async def test_no_body_makes_a_500(raw: bytes) -> None:
    assert await _post(raw, "application/json") in (200, 400, 422)


@settings(max_examples=100, deadline=None)
@given(kind=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30))
async def test_no_content_type_makes_a_500(kind: str) -> None:
    async with client_of(app) as client:
        answer = await client.post(
            "/api/things", content=b'{"name": "x"}', headers=[(b"Content-Type", kind.encode("latin-1"))]
        )
    assert answer.status_code in (200, 415)

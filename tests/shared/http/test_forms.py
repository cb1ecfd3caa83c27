"""Forms bound by hand with `read_form`, over a real application."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.http import problems
from shared.http.bodies import FormLimits, fingerprint, fingerprint_of, read_form, read_json
from tests.shared.http.conftest import client_of

LIMITS = FormLimits(parts=4, text_bytes=50, file_bytes=100, total_bytes=2000)
BOUNDARY = "multipart/form-data; boundary=b"

app = FastAPI()
problems.install(app)


@app.post("/form")
async def _form(request: Request) -> dict[str, Any]:
    form = await read_form(request, limits=LIMITS)
    files = {name: [file.name, file.size, file.sha256] for name, file in form.files.items()}
    return {"fields": form.fields, "files": files, "fingerprint": form.fingerprint()}


@app.post("/form-only")
async def _form_only(request: Request) -> dict[str, Any]:
    return (await read_form(request, accept_json=False)).fields


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def part(disposition: str, value: bytes, *more: str) -> bytes:
    lines = "\r\n".join([f"Content-Disposition: form-data; {disposition}", *more])
    return b"--b\r\n" + lines.encode() + b"\r\n\r\n" + value + b"\r\n"


async def send(client: httpx.AsyncClient, *parts: bytes, end: bytes = b"--b--\r\n") -> httpx.Response:
    return await client.post("/form", content=b"".join(parts) + end, headers={"Content-Type": BOUNDARY})


async def test_texts_and_files(client: httpx.AsyncClient) -> None:
    answer = await send(
        client,
        part('name="name"', b'"edge"'),
        part('name="icon"', b""),
        part('name="note"', 'naïve "x" y'.encode()),
        part('name="file"; filename="../../etc/pass\\wd.yaml"', b"a: 1\r\n--c"),
    )
    body = answer.json()
    assert answer.status_code == 200
    assert body["fields"] == {"name": "edge", "icon": None, "note": 'naïve "x" y'}
    assert body["files"] == {"file": ["wd.yaml", 9, hashlib.sha256(b"a: 1\r\n--c").hexdigest()]}


@pytest.mark.parametrize(
    ("sent", "read"),
    [(b'"x"', "x"), (b'""', None), (b'"', '"'), (b'""x""', '"x"'), (b'"x', '"x'), (b" ", " "), (b"'x'", "'x'")],
)
async def test_one_pair_of_quotes_is_stripped(client: httpx.AsyncClient, sent: bytes, read: str | None) -> None:
    assert (await send(client, part('name="a"', sent))).json()["fields"] == {"a": read}


async def test_a_file_input_left_empty_is_absent(client: httpx.AsyncClient) -> None:
    body = (await send(client, part('name="a"', b"1"), part('name="file"; filename=""', b""))).json()
    assert body["fields"] == {"a": "1"}
    assert body["files"] == {}


async def test_an_empty_file_with_a_name_is_a_file(client: httpx.AsyncClient) -> None:
    assert (await send(client, part('name="file"; filename="x"', b""))).json()["files"]["file"][:2] == ["x", 0]


async def test_json_is_read_alike(client: httpx.AsyncClient) -> None:
    form = (await send(client, part('name="a"', b"1"), part('name="b"', b""))).json()
    sent = await client.post("/form", json={"b": None, "a": "1"})
    assert sent.json() == form
    refused = await client.post("/form-only", json={"a": "1"})
    assert refused.status_code == 415
    assert (await client.post("/form", json=["a"])).status_code == 400


REFUSED: dict[str, tuple[int, bytes]] = {
    "a part twice": (400, part('name="a"', b"1") + part('name="a"', b"2") + b"--b--\r\n"),
    "text and file of one name": (400, part('name="a"', b"") + part('name="a"; filename="f"', b"2") + b"--b--\r\n"),
    "no name": (400, part('filename="f"', b"1") + b"--b--\r\n"),
    "an empty name": (400, part('name=""', b"1") + b"--b--\r\n"),
    "no disposition": (400, b"--b\r\nX: y\r\n\r\n1\r\n--b--\r\n"),
    "a header twice": (400, part('name="a"', b"1", 'Content-Disposition: form-data; name="b"') + b"--b--\r\n"),
    "base64": (400, part('name="a"', b"MQ==", "Content-Transfer-Encoding: base64") + b"--b--\r\n"),
    "no end": (400, part('name="a"', b"1")),
    "cut in the headers": (400, b'--b\r\nContent-Disposition: form-data; name="a'),
    "not a form": (400, b"a=1&b=2"),
    "empty": (400, b""),
    "Latin-1": (400, part('name="a"', b"\xe9") + b"--b--\r\n"),
    "NUL": (400, part('name="a"', b"a\x00b") + b"--b--\r\n"),
    "NUL in a file name": (400, part('name="a"; filename="a\x00b"', b"x") + b"--b--\r\n"),
    "a surrogate": (400, part('name="a"', b"\xed\xa0\x80") + b"--b--\r\n"),
    "too many parts": (413, b"".join(part(f'name="p{n}"', b"1") for n in range(5)) + b"--b--\r\n"),
    "a long text": (413, part('name="a"', b"x" * 51) + b"--b--\r\n"),
    "a long file": (413, part('name="a"; filename="f"', b"x" * 101) + b"--b--\r\n"),
    "a long body": (413, b"x" * 2001),
}


@pytest.mark.parametrize(("status", "raw"), REFUSED.values(), ids=REFUSED.keys())
async def test_refuses(client: httpx.AsyncClient, status: int, raw: bytes) -> None:
    answer = await client.post("/form", content=raw, headers={"Content-Type": BOUNDARY})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_long_body_without_a_length_is_refused(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n\r\n'
        for _ in range(3000):
            yield b"x"

    answer = await client.post("/form", content=chunks(), headers={"Content-Type": BOUNDARY})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "b" * 71],
)
async def test_a_boundary_is_needed(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/form", content=b"--b--\r\n", headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/mixed; boundary=b", ""])
async def test_other_types_are_415(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/form", content=b"a=1", headers={"Content-Type": kind} if kind else {})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.lists(
        st.sampled_from(
            [
                b"--b", b"--b--", b"\r\n", b"\r", b"\n", b'Content-Disposition: form-data; name="a"', b"; filename=",
                b'"', b"\x00", b"\xff", b"Content-Type: text/plain; charset=utf-7", b":", b"x",
            ]
        )
        | st.binary(max_size=8),
        max_size=25,
    ).map(b"".join)
)  # fmt: skip
async def test_no_form_makes_a_500(raw: bytes) -> None:
    async with client_of(app) as client:
        answer = await client.post("/form", content=raw, headers={"Content-Type": BOUNDARY})
    assert answer.status_code in (200, 400, 413)


@settings(max_examples=100, deadline=None)
@given(
    kind=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40).map(
        lambda t: f"multipart/form-data;{t}"
    )
)
async def test_no_content_type_makes_a_500(kind: str) -> None:
    async with client_of(app) as client:
        answer = await client.post("/form", content=b"--b--\r\n", headers={"Content-Type": kind})
    assert answer.status_code in (200, 400, 415)


async def test_the_fingerprint_of_a_request_is_that_of_what_was_read() -> None:
    other = FastAPI()

    @other.post("/")
    async def _read_twice(request: Request, kind: str = "form") -> str:
        if kind == "form":
            form = await read_form(request)
            assert await read_form(request) is form
            assert fingerprint_of(request) == form.fingerprint()
        elif kind == "json":
            body = await read_json(request)
            assert await read_json(request) is body
        return fingerprint_of(request)

    async with client_of(other) as client:
        form = (await client.post("/", files={"a": (None, "1"), "b": (None, "")})).json()
        assert form == (await client.post("/", json={"a": "1", "b": None})).json()
        assert form == (await client.post("/?kind=json", json={"b": None, "a": "1"})).json()
        assert form != (await client.post("/", files={"a": (None, "1"), "b": ("b", "")})).json()
        assert (await client.post("/?kind=none")).json() == fingerprint({})


def test_the_fingerprint_is_of_the_content() -> None:
    assert fingerprint({"a": 1, "b": [None]}) == fingerprint({"b": [None], "a": 1}, {})
    assert fingerprint({"a": 1}) != fingerprint({"a": True})
    assert fingerprint({"a": "1"}) != fingerprint({"a": 1})
    assert fingerprint({}, {"a": "00"}) != fingerprint({"a": "00"})
    assert fingerprint({"a": None}) != fingerprint({})

"""`http.request` against a real server."""

import json
from typing import Any

import pytest

from tests.services.flow.world import World
from tests.serving import Fault, FileServer, send


def mirror(request: Any, fault: object) -> None:
    """Answers with what came."""
    body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
    seen = {
        "method": request.command,
        "path": request.path,
        "body": body.decode(),
        "type": request.headers.get("Content-Type"),
    }
    send(
        request, 200, json.dumps(seen).encode(), {"Content-Type": "application/json", "Set-Cookie": "s=1", "X-Own": "y"}
    )


async def test_a_get(world: World, web: FileServer) -> None:
    query = {"a": "x y&z", "n": 2, "yes": True, "none": None, "list": [1, "b"]}
    done = await world.run("http.request", url=f"{web.route('/m', mirror)}?kept=1", query=query)
    assert done["status"] == 200
    assert done["json"]["method"] == "GET"
    assert done["json"]["path"] == "/m?kept=1&a=x+y%26z&n=2&yes=true&list=1&list=b"
    assert json.loads(done["text"]) == done["json"]
    assert done["headers"]["x-own"] == "y"
    assert "set-cookie" not in done["headers"]
    assert done["file"] is None


@pytest.mark.parametrize(
    ("inputs", "body", "kind"),
    [
        ({"json": {"a": "ü"}}, '{"a": "ü"}', "application/json"),
        ({"json": False}, "false", "application/json"),
        (
            {"json": {"a": 1}, "headers": {"content-type": "application/vnd.x+json"}},
            '{"a": 1}',
            "application/vnd.x+json",
        ),
        ({"body": "plain ü"}, "plain ü", "text/plain; charset=utf-8"),
        ({}, "", None),
    ],
)
async def test_a_post(world: World, web: FileServer, inputs: dict[str, Any], body: str, kind: str | None) -> None:
    done = await world.run("http.request", url=web.route("/m", mirror), method="POST", **inputs)
    assert (done["json"]["method"], done["json"]["body"], done["json"]["type"]) == ("POST", body, kind)


async def test_statuses_that_are_expected(world: World, web: FileServer) -> None:
    url = f"{web.url}/gone"
    failed = await world.fails("http.request", url=url)
    assert (failed.code, failed.message) == ("http_status", "The server answered 404, which was not expected.")
    for expect in (404, [200, 404]):
        done = await world.run("http.request", url=url, expect=expect)
        assert (done["status"], done["text"]) == (404, "not here")
    web.add("/x", b"here")
    assert (await world.fails("http.request", url=f"{web.url}/x", expect=[201])).code == "http_status"
    odd: tuple[Any, ...] = ("404", [99], [{}], ["200"])
    for wrong in odd:
        assert (await world.fails("http.request", url=url, expect=wrong)).code == "bad_request"
    web.fail(Fault("/x", status=503, headers={"Retry-After": "3"}))
    failed = await world.fails("http.request", url=f"{web.url}/x")
    assert (failed.retryable, failed.after) == (True, 3.0)


async def test_redirects_may_be_left_alone(world: World, web: FileServer) -> None:
    web.add("/x", b"here")
    url = web.redirect("/r", "/x")
    assert (await world.run("http.request", url=url))["text"] == "here"
    done = await world.run("http.request", url=url, follow_redirects=False, expect=[302])
    assert done["headers"]["location"] == "/x"


async def test_a_head(world: World, web: FileServer) -> None:
    web.add("/x", b"0123456789")
    done = await world.run("http.request", url=f"{web.url}/x", method="HEAD")
    assert (done["headers"]["content-length"], done["text"]) == ("10", "")


async def test_any_answer_can_be_kept_as_a_file(world: World, web: FileServer) -> None:
    web.add("/a/report.pdf", b"%PDF-\0\1", content_type="application/pdf")
    url = f"{web.url}/a/report.pdf?x=1"
    assert (await world.fails("http.request", url=url)).code == "not_text"
    file = (await world.run("http.request", url=url, as_file=True))["file"]
    assert (file["name"], file["media_type"], file["size"]) == ("report.pdf", "application/pdf", 7)
    assert await world.context().read(file, 100) == b"%PDF-\0\1"


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000, b"[" * 65 + b"]" * 65, b'{"a": "\xff"}', b"9" * 5000],
)
async def test_json_that_is_none(world: World, web: FileServer, body: bytes) -> None:
    url = web.add("/x", body, content_type="application/json")
    assert (await world.fails("http.request", url=url)).code == "bad_answer"


async def test_json_with_what_a_database_refuses(world: World, web: FileServer) -> None:
    for text in (b'{"a": "x\\u0000y"}', b'["\\ud800"]'):
        url = web.add("/x", text, content_type="application/json")
        assert (await world.fails("http.request", url=url)).code == "bad_answer"


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"json": 1, "body": "x"}, "bad_request"),
        ({"query": {"a": {"b": 1}}}, "bad_request"),
        ({"headers": {"Host": "x"}}, "bad_header"),
        ({"method": "TRACE"}, "bad_request"),
        ({"body": "x" * (16 * 1024**2 + 1)}, "too_large"),
    ],
)
async def test_requests_that_are_not_made(world: World, web: FileServer, inputs: dict[str, Any], code: str) -> None:
    assert (await world.fails("http.request", url=f"{web.url}/x", **inputs)).code == code
    assert not web.seen


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "file:///etc/passwd", "http://[", "x"])
async def test_addresses_that_are_refused(world: World, url: str) -> None:
    queries: tuple[dict[str, Any], ...] = ({}, {"a": 1})
    for query in queries:
        assert (await world.fails("http.request", url=url, query=query)).code == "address_refused"

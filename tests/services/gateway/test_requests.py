"""What the gateway lets in, what it sends on, and what it lets out."""

import json
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from services.gateway.limits import Limits
from shared.http import guards
from tests.services.gateway import worker as does
from tests.services.gateway.conftest import SERVED, UPSTREAM_NAME, Bench, Serve
from tests.services.gateway.worker import CHAT, KEY, Answer, Seen

JSON = {"content-type": "application/json"}


def error_of(response: httpx.Response) -> dict[str, str | None]:
    """The error object, after a check that there is nothing else and that no member is missing."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    found: dict[str, str | None] = body["error"]
    return found


async def post(bench: Bench, path: str = "/completions", **given: object) -> httpx.Response:
    async with bench.http as http:
        return await http.post(path, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        (b"", "invalid_json", 400),
        (b"{", "invalid_json", 400),
        (b"[]", "invalid_json", 400),
        (b'"text"', "invalid_json", 400),
        (b'{"a": NaN}', "invalid_json", 400),
        (b'{"a": 1e999}', "invalid_json", 400),
        (b'{"model": "smol", "model": "smol"}', "invalid_json", 400),
        (b'{"a": "\\ud800"}', "invalid_json", 400),
        (b'{"a": "\xff"}', "invalid_json", 400),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json", 400),
        (b'{"a": ' + b"[" * 100_000, "invalid_json", 400),
        (b'{"a": ' + b"[" * 1000 + b"]" * 1000 + b"}", "invalid_json", 400),
        (b'{"stream": "yes"}', "validation_failed", 422),
        (b'{"model": 7}', "validation_failed", 422),
        (b'{"model": ""}', "model_not_found", 404),
        (b'{"model": "gpt-4"}', "model_not_found", 404),
    ],
)
async def test_bodies_that_cannot_be_served(serve: Serve, body: bytes, code: str, status: int) -> None:
    bench = await serve()
    worker = await bench.worker()
    response = await post(bench, content=body, headers=JSON)
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert worker.seen == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"messages": []}', "empty_array"),
        (b'{"messages": null}', "empty_array"),
        (b'{"messages": "hello"}', "empty_array"),
        (b"{}", "missing_required_parameter"),
        (b'{"prompt": "hello", "stream": true}', "missing_required_parameter"),
    ],
)
async def test_a_chat_needs_messages(serve: Serve, body: bytes, code: str) -> None:
    """As OpenAI refuses it; an engine would make something up, or say so in words of its own."""
    bench = await serve()
    worker = await bench.worker()
    response = await post(bench, "/chat/completions", content=body, headers=JSON)
    said = error_of(response)
    assert (response.status_code, said["code"], said["param"], said["type"]) == (
        400, code, "messages", "invalid_request_error",
    )  # fmt: skip
    assert worker.seen == []


async def test_only_json_is_read(serve: Serve) -> None:
    bench = await serve()
    await bench.worker()
    utf16 = {"content-type": 'application/json; charset="utf-16"'}
    for headers in ({"content-type": "text/plain"}, {}, {**JSON, "content-encoding": "gzip"}, utf16):
        response = await post(bench, content=b"{}", headers=headers)
        assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_media_type")


async def test_bodies_beyond_the_limit(serve: Serve) -> None:
    bench = await serve(Limits(body_bytes=1000))
    worker = await bench.worker()
    declared = await post(bench, content=b" " * 1001, headers=JSON)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 300

    undeclared = await post(bench, content=chunks(), headers=JSON)
    for response in (declared, undeclared):
        assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")
    assert worker.seen == []
    exact = b'{"prompt": "' + b"a" * (1000 - 14) + b'"}'
    assert (await post(bench, content=exact, headers=JSON)).status_code == 200


@pytest.mark.parametrize("name", [SERVED, UPSTREAM_NAME, "my-endpoint", None])
async def test_the_model_s_name_becomes_the_worker_s(serve: Serve, name: str | None) -> None:
    bench = await serve()
    worker = await bench.worker()
    body = {"prompt": "é", "seed": 2**60, "nested": {"model": "x"}}
    assert (await post(bench, json={**body, "model": name})).status_code == 200
    assert (await post(bench, json=body)).status_code == 200
    assert [seen.body for seen in worker.seen] == [{**body, "model": UPSTREAM_NAME}] * 2


async def test_an_adapter_is_asked_for_by_its_own_name(serve: Serve) -> None:
    bench = await serve()
    worker = await bench.worker()
    route = bench.table.get(bench.endpoint_id)
    assert route is not None
    bench.table.replace(bench.endpoint_id, route.model_copy(update={"adapters": ("sql",)}))
    assert (await post(bench, json={"model": "sql"})).status_code == 200
    assert worker.seen[-1].body == {"model": "sql"}
    assert (await post(bench, json={"model": "nosql"})).status_code == 404
    async with bench.http as http:
        listed = (await http.get("/models")).json()["data"]
        assert [one["id"] for one in listed] == [SERVED, "sql"]
        assert (await http.get("/models/sql")).json()["id"] == "sql"


async def test_the_endpoint_s_id_is_a_name_too(serve: Serve) -> None:
    bench = await serve()
    await bench.worker()
    assert (await post(bench, json={"model": str(bench.endpoint_id)})).status_code == 200


async def test_keys_and_cookies_stay_on_their_side(serve: Serve) -> None:
    bench = await serve()

    async def behaviour(seen: Seen, answer: Answer) -> None:
        await answer.json({"ok": True}, 200, "Set-Cookie: worker=1; Path=/", "Server: llama.cpp", f"X-Key: {KEY}",
                          "Access-Control-Allow-Origin: *", "Keep-Alive: timeout=5", "Cache-Control: no-store")  # fmt: skip

    worker = await bench.worker(behaviour)
    sent = {"cookie": "stepway_session=abc", "x-forwarded-for": "1.2.3.4", "connection": "x-odd", "x-odd": "1",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}  # fmt: skip
    for _ in range(2):
        response = await post(bench, json={}, headers=sent)
    assert KEY not in str(response.headers)
    assert set(response.headers) - {"date", "server"} == {
        "content-type", "content-length", "cache-control", "x-request-id",
    }  # fmt: skip
    assert response.headers["server"] == "uvicorn"
    for seen in worker.seen:
        assert seen.headers["authorization"] == f"Bearer {KEY}"
        assert bench.key not in str(seen.headers)
        assert seen.headers["traceparent"] == sent["traceparent"]
        assert not {"cookie", "x-forwarded-for", "x-odd"} & set(seen.headers)


async def test_an_answer_s_bytes_are_those_of_the_worker(serve: Serve) -> None:
    bench = await serve(Limits(buffer_bytes=1000))
    odd = b'{"a":  1,\n "b": "\\u00e9"}\r\n'
    large = b'{"a": "' + b"x" * 300_000 + b'"}'
    events = b": hello\r\n\r\ndata: {}\r\n\r\nevent: x\ndata: 1\n\ndata: [DONE]"
    await bench.worker(does.refuse(200, odd))
    assert (await post(bench, json={})).content == odd
    bench.workers[0].behaviour = does.refuse(200, large)
    response = await post(bench, json={})
    assert response.content == large
    assert response.headers["content-length"] == str(len(large))

    async def in_pieces(seen: Seen, answer: Answer) -> None:
        await answer.begin_events()
        for start in range(0, len(events), 3):
            await answer.chunk(events[start : start + 3])
        await answer.end()

    bench.workers[0].behaviour = in_pieces
    response = await post(bench, "/chat/completions", json={**CHAT, "stream": True})
    assert response.content == events
    assert response.headers["content-type"] == "text/event-stream"


async def test_an_event_longer_than_is_held_back_arrives_whole(serve: Serve) -> None:
    bench = await serve()
    event = b"data: " + b"x" * 300_000 + b"\n\n"

    async def behaviour(seen: Seen, answer: Answer) -> None:
        await answer.begin_events()
        for start in range(0, len(event), 50_000):
            await answer.chunk(event[start : start + 50_000])
        await answer.end()

    await bench.worker(behaviour)
    assert (await post(bench, "/chat/completions", json={**CHAT, "stream": True})).content == event


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (422, b'{"detail": [{"loc": ["body"], "msg": "no"}]}', "application/json", '[{"loc": ["body"], "msg": "no"}]'),
        (404, b'{"error": "no such route"}', "application/json", "no such route"),
        (400, b"plain words", "text/plain", "plain words"),
        (413, b"<html><b>nginx</b></html>", "text/html", "The worker answered 413."),
        (429, b"", "application/json", "The worker answered 429."),
        (
            400,
            b'{"error": {"message": "bad key worker-key-6f1c", "code": 400}}',
            "application/json",
            "bad key [redacted]",
        ),
        (400, b"[" * 100_000, "application/json", "[" * 1000),
    ],
)
async def test_refusals_of_any_form_become_openai_s(
    serve: Serve, status: int, body: bytes, kind: str, message: str
) -> None:
    bench = await serve()
    await bench.worker(does.refuse(status, body, "Retry-After: 7", kind=kind))
    response = await post(bench, json={})
    assert response.status_code == status
    assert error_of(response)["message"] == message
    assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("status", "refusal", "expected"),
    [
        (400, {"code": 400, "message": "exceeds", "type": "exceed_context_size_error"}, "context_length_exceeded"),
        (500, {"code": 500, "message": "exceeds", "type": "exceed_context_size_error"}, "context_length_exceeded"),
        (400, {"message": "This model's maximum context length is 64 tokens."}, "context_length_exceeded"),
        (400, {"code": "400", "message": "no"}, "invalid_request"),
        (400, {"code": "invalid_value", "message": "no"}, "invalid_value"),
        (404, {"message": "no"}, "not_found"),
        (500, {"code": 500, "message": "no"}, "worker_failed"),
        (418, {"message": "no"}, "invalid_request"),
    ],
)
async def test_a_refusal_has_a_code(serve: Serve, status: int, refusal: dict[str, object], expected: str) -> None:
    bench = await serve()
    await bench.worker(does.refuse(status, json.dumps({"error": refusal}).encode()))
    response = await post(bench, json={})
    error = error_of(response)
    assert error["code"] == expected
    if expected == "context_length_exceeded":
        assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    else:
        assert response.status_code == status


async def test_a_key_s_rate_is_bounded(serve: Serve) -> None:
    bench = await serve(Limits(rate_quota=2, rate_seconds=3600))
    await bench.worker()
    bench.keys.grant("another", bench.endpoint_id)
    allowed = [await post(bench, json={}) for _ in range(2)]
    refused = await post(bench, json={})
    assert [answer.status_code for answer in allowed] == [200, 200]
    assert allowed[1].headers["ratelimit"].startswith('"inference";r=0')
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limited")
    assert error_of(refused)["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert len(bench.workers[0].seen) == 2
    other = await post(bench, json={}, headers={"authorization": "Bearer another"})
    assert other.status_code == 200


async def test_an_endless_refusal_is_cut(serve: Serve) -> None:
    bench = await serve()

    async def behaviour(seen: Seen, answer: Answer) -> None:
        await answer.raw(b"HTTP/1.1 400 Bad\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await answer.chunk(b"a" * 10_000)

    worker = await bench.worker(behaviour)
    response = await post(bench, json={})
    assert response.status_code == 400
    assert error_of(response)["message"] == "a" * 1000
    await worker.seen[0].ended.wait()
    assert worker.seen[0].client_gone


async def test_unknown_and_invisible_endpoints_look_the_same(serve: Serve) -> None:
    bench = await serve()
    await bench.worker()
    other = str(uuid4())
    bench.keys.grant("somebody else's", bench.endpoint_id)
    answers = set()
    async with bench.http as http:
        for endpoint in (other, "not-an-id", str(bench.endpoint_id).replace("-", ""), "%00"):
            for path, body in (("completions", {}), ("models", None)):
                url = f"{bench.base}/endpoints/{endpoint}/v1/{path}"
                response = await (http.get(url) if body is None else http.post(url, json=body))
                answers.add((response.status_code, response.content))
    assert len(answers) == 1
    assert answers.pop()[0] == 404


async def test_access_is_refused_before_anything_else(serve: Serve) -> None:
    bench = await serve()
    async with httpx.AsyncClient(base_url=bench.url, trust_env=False) as http:
        for response in (
            await http.get("/models"),
            await http.post("/chat/completions", content=b"{"),
            await http.get("/nothing"),
            await http.get("/models", headers=[("authorization", "Bearer a")]),
        ):
            assert response.status_code == 401
            assert error_of(response)["type"] == "authentication_error"
        twice = [("authorization", f"Bearer {bench.key}"), ("authorization", "Bearer other")]
        assert (await http.get("/models", headers=twice)).status_code == 400


async def test_other_paths_and_methods(serve: Serve) -> None:
    bench = await serve()
    await bench.worker()
    async with bench.http as http:
        for path in ("/props", "/chat", "/chat/completions/x", "/../slots", "/responses"):
            response = await http.post(path, json={})
            assert response.status_code == 404, path
        for response in (await http.get("/completions"), await http.delete("/models/smol")):
            assert response.status_code == 405
            assert error_of(response)["code"] == "method_not_allowed"
            assert response.headers["allow"] in ("GET", "POST")
    assert bench.workers[0].seen == []


async def test_the_request_s_id_goes_all_the_way(serve: Serve) -> None:
    bench = await serve()
    worker = await bench.worker()
    own = await post(bench, json={}, headers={"x-request-id": "mine-1234"})
    odd = await post(bench, json={}, headers={"x-request-id": "a b\tc"})
    assert own.headers["x-request-id"] == worker.seen[0].headers["x-request-id"] == "mine-1234"
    assert odd.headers["x-request-id"] == worker.seen[1].headers["x-request-id"]
    assert len(odd.headers["x-request-id"]) == 32


async def test_behind_the_guards_of_the_platform(serve: Serve) -> None:
    def wrap(app: FastAPI) -> None:
        guards.install(app, allowed_hosts=["127.0.0.1"], body_limits=[(r"/endpoints/[^/]+/v1/", None)])

    bench = await serve(wrap=wrap)
    worker = await bench.worker()
    response = await post(
        bench,
        "/chat/completions",
        json={**CHAT, "stream": True, "user": "a" * 3_000_000},
        headers={"x-request-id": "mine-1234"},
    )
    assert response.status_code == 200
    assert response.headers.get_list("x-request-id") == ["mine-1234"]
    assert worker.seen[0].headers["x-request-id"] == "mine-1234"
    assert response.content.endswith(b"data: [DONE]\n\n")


async def test_a_fault_of_ours_is_a_plain_500(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    bench = await serve()
    await bench.worker()
    bench.gateway._balancer = None  # type: ignore[assignment]
    response = await post(bench, json={})
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal"
    assert "NoneType" not in json.dumps(response.json())
    assert (await bench.used()).error == "internal"

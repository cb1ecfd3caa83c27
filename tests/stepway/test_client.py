"""The client against a small HTTP server that fails as servers do."""

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from stepway.client import ApiError, Client, Unreachable, base_url
from tests.serving import Fault, FileServer, send

PROBLEM = {
    "type": "/docs/errors#missing_fields", "title": "Something is still missing", "status": 422, "code": "missing_fields",
    "detail": "Before this can start: name.", "retryable": False,
    "errors": [{"param": "name", "code": "missing", "message": "Name is required.", "step": 3}],
}  # fmt: skip
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def client(server: FileServer, waits: list[float]) -> Iterator[Client]:
    with Client(server.url, "k", sleep=waits.append, patience=5) as client:
        yield client


def answer(value: object) -> bytes:
    return json.dumps(value).encode()


def test_waits_as_retry_after_says_and_repeats_with_the_same_key(
    server: FileServer, client: Client, waits: list[float]
) -> None:
    server.fail(Fault("/things", status=429, headers={"Retry-After": "2"}))
    server.fail(Fault("/things", status=503))
    server.route("/things", lambda request, fault: send(request, 200, answer({"id": 1}), JSON))
    assert client.post("/things") == {"id": 1}
    assert waits[0] == 2
    assert len(waits) == 2
    keys = {seen.headers["idempotency-key"] for seen in server.seen}
    assert len(server.seen) == 3
    assert len(keys) == 1
    assert {seen.headers["authorization"] for seen in server.seen} == {"Bearer k"}


def test_does_not_wait_longer_than_its_patience(server: FileServer, client: Client, waits: list[float]) -> None:
    server.fail(Fault("/things", status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(ApiError) as caught:
        client.get("/things")
    assert caught.value.status == 429
    assert waits == []


def test_a_lost_connection_is_repeated_for_a_post_but_not_for_a_delete(server: FileServer, client: Client) -> None:
    lost: list[str] = []

    def cut(request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        if not lost:
            lost.append(request.command)
            request.close_connection = True
            return
        send(request, 200, answer({"ok": True}), JSON)

    server.route("/things", cut)
    assert client.post("/things") == {"ok": True}
    lost.clear()
    server._server.RequestHandlerClass.do_DELETE = server._server.RequestHandlerClass.do_GET  # type: ignore[attr-defined]
    with pytest.raises(Unreachable, match="was lost"):
        client.delete("/things")
    assert lost == ["DELETE"]


def test_a_problem_becomes_an_error_with_all_its_faults(server: FileServer, client: Client) -> None:
    kind = {"Content-Type": "application/problem+json"}
    server.route("/steps", lambda request, fault: send(request, 422, answer(PROBLEM), kind))
    with pytest.raises(ApiError) as caught:
        client.post("/steps", {})
    error = caught.value
    assert (error.status, error.code, error.detail) == (422, "missing_fields", "Before this can start: name.")
    assert error.errors[0]["step"] == 3
    assert error.help_url == f"{server.url}/docs/errors#missing_fields"


def test_an_answer_that_is_no_problem_is_told_by_its_status(server: FileServer, client: Client) -> None:
    server.route("/page", lambda request, fault: send(request, 502, b"<html>", {"Content-Type": "text/html"}))
    with pytest.raises(ApiError, match="502"):
        client.get("/page")


def test_items_go_over_all_pages_and_stop_at_the_limit(server: FileServer, client: Client) -> None:
    def page(request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        second = "cursor=abc" in request.path
        data = [{"id": 3}] if second else [{"id": 1}, {"id": 2}]
        send(request, 200, answer({"data": data, "next_cursor": None if second else "abc"}), JSON)

    server.route("/list", page)
    assert [one["id"] for one in client.items("/list", state="x")] == [1, 2, 3]
    assert all("state=x" in seen.path for seen in server.seen)
    assert [one["id"] for one in client.items("/list", limit=1)] == [1]


def test_items_keep_the_query_of_their_path(server: FileServer, client: Client) -> None:
    server.route("/list", lambda request, fault: send(request, 200, answer({"data": [], "next_cursor": None}), JSON))
    assert list(client.items("/list?source=catalog", search="a b")) == []
    assert "source=catalog" in server.seen[0].path
    assert "search=a+b" in server.seen[0].path or "search=a%20b" in server.seen[0].path


def test_events_go_on_after_a_cut_and_end_with_204(server: FileServer, client: Client) -> None:
    asked: list[str | None] = []
    parts = {
        None: b"id: 1\nevent: job\ndata: {\"n\": 1}\n\nid: 2\nevent: step\ndata: {\"n\": 2}\n\nid: 3\nevent: step\ndata: {\"n\"",
        "2": b"id: 3\nevent: step\ndata: {\"n\": 3}\n\n",
    }  # fmt: skip

    def events(request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        last = request.headers.get("Last-Event-ID")
        asked.append(last)
        body = parts.get(last)
        if body is None:
            send(request, 204, b"", {})
        else:
            # A false length: the connection is closed in the middle of the stream.
            send(request, 200, body, {"Content-Type": "text/event-stream", "Content-Length": str(len(body) + 100)})
            request.close_connection = True

    server.route("/jobs/1/events", events)
    assert [(event.id, event.name, event.data["n"]) for event in client.events("/jobs/1/events")] == [
        ("1", "job", 1), ("2", "step", 2), ("3", "step", 3),
    ]  # fmt: skip
    assert asked == [None, "2", "3"]


def test_an_error_within_a_chat_is_raised_after_the_pieces_before_it(server: FileServer, client: Client) -> None:
    body = b'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n'
    body += b'data: {"error": {"message": "Gone.", "code": "worker_failed"}}\n\n'
    server.route(
        "/endpoints/e/v1/chat/completions",
        lambda request, fault: send(request, 200, body, {"Content-Type": "text/event-stream"}),
    )
    pieces = client.chat("e", [{"role": "user", "content": "x"}])
    assert next(pieces) == "Hel"
    with pytest.raises(ApiError) as caught:
        next(pieces)
    assert caught.value.code == "worker_failed"
    assert caught.value.detail == "Gone."


def test_nobody_there_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url, patience=0) as client, pytest.raises(Unreachable, match=f"No Stepway answers at {url}"):
            client.get("/me")


def test_the_key_is_not_in_the_representation() -> None:
    assert "secret" not in repr(Client("http://127.0.0.1:1", "secret"))


@pytest.mark.parametrize("url", ["127.0.0.1:8400", "ftp://x", "http://", "http://me:pw@host", "/jobs"])
def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        base_url(url)

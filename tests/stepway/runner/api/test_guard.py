"""Web pages and foreign names, with and without keys."""

from collections.abc import AsyncIterator

import httpx
import pytest

from stepway.runner import Config
from stepway.runner.api.errors import Refused
from stepway.runner.api.request import Request
from tests.stepway.runner.api.conftest import listening, served

CONSOLE = "https://console.example"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:80", "flows.localhost", "127.9.9.9", "[::ffff:127.0.0.1]"]
)
async def test_names_of_this_machine_are_served(http: httpx.AsyncClient, host: str) -> None:
    assert (await http.get("/health", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "192.168.0.1", "[", "127.0.0.1.evil"]
)
async def test_names_that_point_here_are_not(http: httpx.AsyncClient, host: str) -> None:
    answer = await http.post("/workflows/greet/run", json={}, headers={"host": host})
    assert answer.status_code == 403
    assert list(answer.json()) == ["detail"]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost.evil.example", "file://", "http://127.0.0.1.x"]
)
async def test_foreign_pages_run_nothing(http: httpx.AsyncClient, origin: str) -> None:
    headers = {"origin": origin, "content-type": "text/plain"}
    answer = await http.post("/workflows/greet/run", content='{"handler_id": "foreign"}', headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert (await http.get("/handlers/foreign")).status_code == 404


async def test_pages_of_this_machine_may_call(http: httpx.AsyncClient) -> None:
    answer = await http.get("/health", headers={"origin": "http://localhost:5173"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"
    assert "access-control-allow-credentials" not in answer.headers


@pytest.fixture(scope="module")
async def guarded() -> AsyncIterator[str]:
    """With keys, a page that is allowed, and a name of its own."""

    async def authorise(request: Request) -> None:
        if request.headers.get(b"authorization") != b"Bearer key":
            raise Refused(401, "A key is needed", ((b"www-authenticate", b"Bearer"),))

    config = Config(allowed_origins=(CONSOLE,), public_url="https://flows.example")
    async with listening(served(config, authorise=authorise)) as url:
        yield url


async def test_an_allowed_page_asks_first_and_reads_the_answer(guarded: str) -> None:
    async with httpx.AsyncClient(base_url=guarded) as http:
        asks = {
            "origin": CONSOLE,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        before = await http.options("/workflows/greet/run", headers=asks)
        assert before.status_code == 204
        assert before.headers["access-control-allow-origin"] == CONSOLE
        assert before.headers["access-control-allow-headers"] == "authorization"
        assert "POST" in before.headers["access-control-allow-methods"]
        headers = {"origin": CONSOLE, "authorization": "Bearer key", "host": "flows.example"}
        answer = await http.post("/workflows/greet/run", json={}, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, CONSOLE)
        events = await http.get(f"/events/{answer.json()['handler_id']}?after_sequence=-1", headers=headers)
        assert events.headers["access-control-allow-origin"] == CONSOLE


async def test_another_page_reads_nothing_even_with_a_key(guarded: str) -> None:
    async with httpx.AsyncClient(base_url=guarded) as http:
        headers = {"origin": "https://evil.example", "authorization": "Bearer key"}
        answer = await http.get("/workflows", headers=headers)
        assert "access-control-allow-origin" not in answer.headers


async def test_without_a_key_there_is_no_answer(guarded: str) -> None:
    async with httpx.AsyncClient(base_url=guarded) as http:
        answer = await http.get("/workflows")
        assert (answer.status_code, answer.json()) == (401, {"detail": "A key is needed"})
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_public_name_is_served_without_keys() -> None:
    async with (
        listening(served(Config(public_url="https://flows.example"))) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        assert (await http.get("/health", headers={"host": "flows.example"})).status_code == 200
        assert (await http.get("/health", headers={"host": "evil.example"})).status_code == 403

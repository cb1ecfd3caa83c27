"""The guide's file, served as it is, and its curl lines, by curl."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.stepway.runner.api.conftest import listening
from tests.stepway.runner.api.seed_server import server


@pytest.fixture(scope="module")
async def seed() -> AsyncIterator[str]:
    async with listening(server) as url:
        yield url


async def curl(*arguments: str) -> tuple[int, str]:
    """The answer's code and body."""
    running = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--max-time", "60", "-w", "\n%{http_code}", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await running.communicate()
    assert running.returncode == 0
    body, _, code = out.decode().rpartition("\n")
    return int(code), body


async def curl_json(*arguments: str) -> tuple[int, Any]:
    code, body = await curl(*arguments)
    return code, json.loads(body)


def posted(body: object) -> list[str]:
    return ["-X", "POST", "-H", "Content-Type: application/json", "-d", json.dumps(body)]


async def test_health_and_names(seed: str) -> None:
    assert await curl_json(f"{seed}/health") == (200, {"status": "healthy"})
    assert await curl_json(f"{seed}/workflows") == (200, {"workflows": ["greet"]})


async def test_run_with_the_guides_body(seed: str) -> None:
    body = {"start_event": {}, "context": {}, "handler_id": "", "kwargs": {}}
    code, handler = await curl_json(f"{seed}/workflows/greet/run", *posted(body))
    assert code == 200
    assert handler["result"]["value"]["result"] == "Hello, World!"


async def test_run_nowait_then_the_result(seed: str) -> None:
    body = {"start_event": {"name": "Ada"}, "context": {}, "handler_id": "someUniqueId123", "kwargs": {}}
    code, handler = await curl_json(f"{seed}/workflows/greet/run-nowait", *posted(body))
    assert (code, handler["handler_id"], handler["status"]) == (200, "someUniqueId123", "running")
    query = "sse=false&acquire_timeout=1&include_internal=false&include_qualified_name=true&after_sequence=-1"
    code, lines = await curl("-N", f"{seed}/events/someUniqueId123?{query}")
    events = [json.loads(line) for line in lines.splitlines()]
    assert code == 200
    assert [event["type"] for event in events] == ["StreamEvent"] * 3 + ["StopEvent"]
    assert all(set(event) == {"value", "qualified_name", "type", "types"} for event in events)
    code, handler = await curl_json(f"{seed}/results/someUniqueId123")
    assert (code, handler["result"], handler["status"]) == (200, "Hello, Ada!", "completed")
    code, listed = await curl_json(f"{seed}/handlers?status=completed")
    assert "someUniqueId123" in {one["handler_id"] for one in listed["handlers"]}
    assert await curl_json("-X", "POST", f"{seed}/handlers/someUniqueId123/cancel?purge=true") == (
        200,
        {"status": "deleted"},
    )


async def test_the_result_is_not_there_yet(seed: str) -> None:
    await curl(f"{seed}/workflows/greet/run-nowait", *posted({"handler_id": "early"}))
    code, handler = await curl_json(f"{seed}/results/early")
    assert (code, handler["status"], handler["result"]) == (202, "running", None)
    code, _ = await curl_json(
        f"{seed}/events/early", *posted({"event": {"type": "StopEvent", "value": {}}, "step": ""})
    )
    assert code == 200
    assert await curl_json("-X", "POST", f"{seed}/handlers/early/cancel") == (200, {"status": "cancelled"})


async def test_a_body_with_a_lie_about_its_kind_is_read(seed: str) -> None:
    """curl's -d without a header says that it is a form."""
    code, _ = await curl_json("-d", '{"start_event": {"name": "A"}}', f"{seed}/workflows/greet/run")
    assert code == 200

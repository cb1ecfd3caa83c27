"""The endpoint table: every route, its codes and bodies."""

import asyncio
import json
import re
import sys
from typing import Any

import httpx
import pytest
from pydantic import field_validator
from workflows import Context, Workflow, step
from workflows.context.serializers import JsonSerializer, PickleSerializer
from workflows.events import StartEvent, StopEvent

from stepway.runner import Config, WorkflowServer
from tests.stepway.runner.api import flows
from tests.stepway.runner.api.conftest import ended, listening, opened, served

HANDLER = {
    "handler_id", "workflow_name", "run_id", "error", "result", "status", "started_at", "updated_at", "completed_at",
}  # fmt: skip
HELLO = {
    "value": {"result": "Hello, A!"},
    "qualified_name": "workflows.events.StopEvent",
    "type": "StopEvent",
    "types": None,
}


def detail(answer: httpx.Response) -> str:
    """What an error says, which is all of its body."""
    body = answer.json()
    assert list(body) == ["detail"]
    told = body["detail"]
    assert isinstance(told, str)
    return told


async def started(http: httpx.AsyncClient, flow: str, **body: Any) -> str:
    answer = await http.post(f"/workflows/{flow}/run-nowait", json=body)
    assert answer.status_code == 200
    handler_id = answer.json()["handler_id"]
    assert isinstance(handler_id, str)
    return handler_id


async def test_health(http: httpx.AsyncClient) -> None:
    answer = await http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "healthy"})
    head = await http.head("/health")
    assert (head.status_code, head.content) == (200, b"")


async def test_workflows_are_listed(http: httpx.AsyncClient) -> None:
    names = (await http.get("/workflows")).json()["workflows"]
    assert names == ["greet", "add", "ask", "wait", "fail", "slow", "count", "odd", "many"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/workflows/", 404), ("GET", "/handlers/", 404), ("GET", "/handlers/a/b", 404),
        ("POST", "/workflows/none/run", 404), ("POST", "/workflows/none/run-nowait", 404),
        ("GET", "/workflows/none/schema", 404), ("GET", "/workflows/none/events", 404),
        ("GET", "/workflows/none/representation", 404), ("GET", "/handlers/none", 404), ("GET", "/results/none", 404),
        ("GET", "/events/none", 404), ("POST", "/handlers/none/cancel", 404), ("POST", "/handlers/none/cancel?purge=true", 404),
        ("GET", "/handlers/%00", 404), ("GET", "/handlers/%ff", 404), ("GET", "/handlers/a%2Fb", 404),
        ("GET", "/workflows/greet/run", 405), ("POST", "/health", 405), ("DELETE", "/handlers/x", 405),
        ("GET", "/events/none?after_sequence=x", 400),
    ],
)  # fmt: skip
async def test_what_is_not_there(http: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == status
    assert detail(answer)
    if status == 405:
        assert answer.headers["allow"]


async def test_run_answers_the_whole_handler(http: httpx.AsyncClient) -> None:
    answer = await http.post("/workflows/greet/run", json={"start_event": {"name": "A"}})
    handler = answer.json()
    assert answer.status_code == 200
    assert set(handler) == HANDLER
    assert handler["result"] == HELLO
    assert (handler["status"], handler["error"], handler["workflow_name"]) == ("completed", None, "greet")
    assert handler["started_at"] <= handler["completed_at"]


@pytest.mark.parametrize(
    "body",
    [
        {"start_event": {"name": "A"}},
        {"start_event": '{"name": "A"}'},
        {"start_event": {"type": "StartEvent", "value": {"name": "A"}}},
        {"start_event": {"qualified_name": "workflows.events.StartEvent", "value": {"name": "A"}}},
        {"start_event": {"_data": {"name": "A"}}},
        {"start_event": {"name": "A"}, "kwargs": {"name": "B"}, "context": {}, "handler_id": ""},
        {"kwargs": {"name": "A"}},
    ],
    ids=["fields", "text", "type", "qualified", "data", "the seed's", "kwargs"],
)
async def test_start_events_are_taken_in_all_their_forms(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await http.post("/workflows/greet/run", json=body)
    assert answer.json()["result"] == HELLO


@pytest.mark.parametrize(
    "body", [{}, {"start_event": None}, {"start_event": {}}, {"kwargs": None}, {"context": None}], ids=str
)
async def test_a_start_event_may_be_left_out(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await http.post("/workflows/greet/run", json=body)
    assert answer.json()["result"]["value"] == {"result": "Hello, World!"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "Invalid JSON body"), (b"{", "Invalid JSON body"), (b"[]", "not a JSON object"), (b"null", "not a JSON object"),
        (b'{"start_event": {"numbers": [NaN]}}', "Invalid JSON body"), (b"\xff\xfe", "Invalid JSON body"),
        (b'{"start_event": ' + b"[" * 100_000, "Invalid JSON body"), (b'{"start_event": {}, "start_event": {}}', "given twice"),
        (b'{"start_event": {"note": "\\ud800"}}', "Invalid JSON body"), (b'{"x": ' + b"9" * 10_000 + b"}", "Invalid JSON body"),
        (b"{}", "start_event.*numbers: Field required"), (b'{"start_event": null}', "start_event.*Field required"),
        (b'{"start_event": {"numbers": []}}', "at least 1 item"), (b'{"start_event": 5}', "JSON object"),
        (b'{"start_event": {"type": "StartEvent", "value": {}}}', "Invalid event type: StartEvent"),
        (b'{"start_event": {"type": "Summed", "value": {"total": 1, "note": ""}}}', "must be an instance of Sums, not Summed"),
        (b'{"start_event": {"numbers": [1]}, "handler_id": 5}', "handler_id"),
        (b'{"start_event": {"numbers": [1]}, "handler_id": "a/b"}', "handler_id"),
        (b'{"start_event": {"numbers": [1]}, "handler_id": "\\u0000"}', "handler_id"),
        (b'{"start_event": {"numbers": [1]}, "handler_id": ".."}', "handler_id"),
        (b'{"start_event": {"numbers": [1]}, "handler_id": "' + b"x" * 201 + b'"}', "handler_id"),
        (b'{"start_event": {"numbers": [1]}, "context": "x"}', "context"),
    ],
    ids=range(22),
)  # fmt: skip
@pytest.mark.parametrize("route", ["run", "run-nowait"])
async def test_a_bad_body_is_refused(http: httpx.AsyncClient, route: str, body: bytes, said: str) -> None:
    answer = await http.post(f"/workflows/add/{route}", content=body)
    assert answer.status_code == 400
    assert re.search(said, detail(answer))


async def test_numbers_and_texts_of_all_sizes_are_taken(http: httpx.AsyncClient) -> None:
    numbers = [0, -1, 2**63, 10**300]
    answer = await http.post(
        "/workflows/add/run", json={"start_event": {"numbers": numbers, "note": "a\0b\u2028\U0001f600"}}
    )
    assert answer.json()["result"]["value"] == {"total": sum(numbers), "note": "a\0b\u2028\U0001f600"}


async def test_a_start_event_that_cannot_be_stored_is_refused() -> None:
    class Opening(StartEvent):
        at: Any = None

        @field_validator("at")
        @classmethod
        def made(cls, value: Any) -> Any:
            return object() if value == "hunter2" else value

    class Opened(Workflow):
        @step
        async def only(self, ev: Opening) -> StopEvent:
            return StopEvent()

    server = WorkflowServer()
    server.add_workflow("opened", Opened())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://localhost") as http:
        answer = await http.post("/workflows/opened/run", json={"start_event": {"at": "hunter2"}})
        assert (answer.status_code, detail(answer)) == (400, "Opening cannot be stored as JSON")
    await server.stop()


async def test_a_context_alone_is_enough_in_the_middle_of_a_run_only(http: httpx.AsyncClient) -> None:
    answer = await http.post("/workflows/add/run", json={"start_event": None, "context": {"state": {}}})
    assert (answer.status_code, "start_event" in detail(answer)) == (400, True)
    flow = flows.Asking()
    context: Context[Any] = Context(flow)
    running = flow.run(ctx=context)
    async for event in running.stream_events():
        if isinstance(event, flows.Question):
            break
    middle = context.to_dict()
    await running.cancel_run()
    body = {"start_event": None, "context": middle, "handler_id": "middle"}
    assert (await http.post("/workflows/ask/run-nowait", json=body)).status_code == 200
    await http.post("/events/middle", json={"event": {"type": "Answer", "value": {"response": "me"}}})
    assert (await ended(http, "middle")).json()["result"]["value"] == {"result": {"response": "me"}}


@pytest.mark.parametrize("serializer", [PickleSerializer(), JsonSerializer()], ids=["pickle", "open"])
async def test_a_context_for_a_serializer_that_makes_anything_is_refused(serializer: JsonSerializer) -> None:
    class Trusting(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result="made")

    server = WorkflowServer()
    server.add_workflow("trusting", Trusting(serializer=serializer))
    state = {"__is_pydantic": True, "qualified_name": "antigravity.Thing", "value": {}}
    context = {
        "version": 1,
        "state": {"state_type": "DictState", "state_module": "x", "state_data": {"_data": {"a": state}}},
    }
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://localhost") as http:
        answer = await http.post("/workflows/trusting/run", json={"context": context})
        assert (answer.status_code, "antigravity" in sys.modules) == (400, False)
        assert (await http.post("/workflows/trusting/run", json={"context": {}})).status_code == 200
    await server.stop()


@pytest.mark.parametrize(
    "state",
    [
        {
            "state_type": "DictState",
            "state_module": "workflows.context.state_store",
            "state_data": {"_data": {"a": "X"}},
        },
        {"state_type": "Thing", "state_module": "antigravity", "state_data": {}},
        {"state_type": "DictState", "state_data": 5},
    ],
    ids=["value", "class", "shape"],
)
async def test_a_context_does_not_import(http: httpx.AsyncClient, state: dict[str, Any]) -> None:
    named = {"__is_pydantic": True, "qualified_name": "antigravity.Thing", "value": {}}
    text = json.dumps({"version": 1, "state": state}).replace('"X"', json.dumps(json.dumps(named)))
    answer = await http.post("/workflows/count/run", json={"context": json.loads(text)})
    assert "antigravity" not in sys.modules
    assert answer.status_code in (200, 400)


async def test_a_failed_run_is_answered_with_its_handler(http: httpx.AsyncClient) -> None:
    answer = await http.post("/workflows/fail/run", json={"start_event": {"what": "way"}})
    assert answer.status_code == 500
    assert set(answer.json()) == HANDLER
    assert (answer.json()["status"], answer.json()["error"]) == ("failed", "no way")


async def test_run_nowait_answers_before_the_end(http: httpx.AsyncClient) -> None:
    answer = await http.post(
        "/workflows/slow/run-nowait", json={"start_event": {"key": "nowait"}, "handler_id": "nowait 1"}
    )
    assert (answer.status_code, answer.json()["status"], answer.json()["handler_id"]) == (200, "running", "nowait 1")
    running = await http.get("/handlers/nowait 1")
    assert (running.status_code, running.json()["status"], running.json()["completed_at"]) == (202, "running", None)
    assert (await http.get("/results/nowait 1")).status_code == 202
    again = await http.post("/workflows/slow/run", json={"handler_id": "nowait 1"})
    assert (again.status_code, detail(again)) == (409, "Handler 'nowait 1' is already running")
    await opened(http, "nowait 1", "StreamEvent")
    flows.Slow.gates["nowait"].set()
    assert (await ended(http, "nowait 1")).status_code == 200
    assert (await http.get("/results/nowait 1")).json()["result"] == "let go"


async def test_a_handler_given_again_goes_on(http: httpx.AsyncClient) -> None:
    first = (await http.post("/workflows/count/run", json={"handler_id": "again"})).json()
    second = (await http.post("/workflows/count/run", json={"handler_id": "again"})).json()
    assert second["result"]["value"] == {"result": 2}
    assert first["run_id"] != second["run_id"]


async def test_results_are_bare(http: httpx.AsyncClient) -> None:
    handler_id = await started(http, "add", start_event={"numbers": [1, 2], "note": "n"})
    await ended(http, handler_id)
    assert (await http.get(f"/results/{handler_id}")).json()["result"] == {"total": 3, "note": "n"}
    plain = await started(http, "odd", start_event={"kind": "list"})
    await ended(http, plain)
    answer = await http.get(f"/results/{plain}")
    assert (answer.status_code, answer.json()["result"], set(answer.json())) == (200, [1, "two"], HANDLER)


@pytest.mark.parametrize(
    ("kind", "value"), [("nan", {"result": None}), ("none", {}), ("text", {"result": "a\0b\u2028"})]
)
async def test_odd_results_are_answered(http: httpx.AsyncClient, kind: str, value: dict[str, Any]) -> None:
    answer = await http.post("/workflows/odd/run", json={"start_event": {"kind": kind}})
    assert (answer.status_code, answer.json()["result"]["value"]) == (200, value)


async def test_schemas(http: httpx.AsyncClient) -> None:
    made = (await http.get("/workflows/add/schema")).json()
    assert set(made) == {"start", "stop"}
    assert made["start"]["required"] == ["numbers"]
    assert made["stop"]["title"] == "Summed"
    events = (await http.get("/workflows/wait/events")).json()["events"]
    assert {"StartEvent", "StopEvent", "Hidden"} == {event["title"] for event in events}


async def test_the_representation_is_a_graph(http: httpx.AsyncClient) -> None:
    graph = (await http.get("/workflows/ask/representation")).json()["graph"]
    kinds = {node["id"]: node["node_type"] for node in graph["nodes"]}
    assert kinds["ask"] == "step"
    assert kinds["Question"] == "event"
    assert "external" in kinds.values()
    assert {"source": "ask", "target": "Question", "label": None} in graph["edges"]
    question = next(node for node in graph["nodes"] if node["id"] == "Question")
    assert question["event_types"] == ["Question", "InputRequiredEvent"]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "Answer", "value": {"response": "me"}},
        '{"type": "Answer", "value": {"response": "me"}}',
        {"qualified_name": "tests.stepway.runner.api.flows.Answer", "value": {"response": "me"}},
    ],
    ids=["object", "text", "qualified"],
)
@pytest.mark.parametrize("step", ["", None, "answered"])
async def test_an_event_is_sent(http: httpx.AsyncClient, event: Any, step: str | None) -> None:
    handler_id = await started(http, "ask")
    await opened(http, handler_id, "Question")
    answer = await http.post(f"/events/{handler_id}", json={"event": event, "step": step})
    assert (answer.status_code, answer.json()) == (200, {"status": "sent"})
    assert (await ended(http, handler_id)).json()["result"]["value"] == {"result": {"response": "me"}}


async def test_an_additional_event_is_sent(http: httpx.AsyncClient) -> None:
    handler_id = await started(http, "wait")
    await opened(http, handler_id, "Question")
    await http.post(f"/events/{handler_id}", json={"event": {"type": "Hidden", "value": {"word": "w"}}})
    assert (await ended(http, handler_id)).json()["result"]["value"] == {"result": "w"}


async def test_bad_events_are_refused_in_order(http: httpx.AsyncClient) -> None:
    running = await started(http, "ask")
    over = (await http.post("/workflows/greet/run", json={})).json()["handler_id"]
    good = {"type": "Answer", "value": {"response": "me"}}

    async def sent(handler_id: str, content: bytes | None = None, **body: Any) -> tuple[int, str]:
        answer = await http.post(f"/events/{handler_id}", content=content, json=None if content else body)
        return answer.status_code, detail(answer)

    assert (await sent("none", b"{"))[0] == 400
    assert (await sent(over, b"[]"))[0] == 400
    assert await sent("none", event={}) == (400, "Event data is required")
    assert await sent(over, step="x") == (400, "Event data is required")
    assert await sent("none", event={"type": "X"}) == (404, "Handler not found")
    assert await sent(over, event={"type": "X"}) == (409, "Workflow already completed")
    assert (await sent(running, event={"type": "Hidden", "value": {"word": "w"}}))[0] == 400
    assert await sent(running, event={"type": "Answer", "value": {}}) == (400, "Answer: response: Field required")
    assert await sent(running, event=good, step="none") == (400, "Step none does not exist")
    assert (await sent(running, event=good, step="ask"))[0] == 400
    assert (await sent(running, event=good, step=5))[0] == 400
    assert (await http.get(f"/handlers/{running}")).status_code == 202
    await http.post(f"/handlers/{running}/cancel")


async def test_a_run_is_cancelled_once(http: httpx.AsyncClient) -> None:
    handler_id = await started(http, "slow", start_event={"key": "never"})
    answer = await http.post(f"/handlers/{handler_id}/cancel")
    assert (answer.status_code, answer.json()) == (200, {"status": "cancelled"})
    handler = await http.get(f"/handlers/{handler_id}")
    assert (handler.status_code, handler.json()["status"], handler.json()["result"]) == (500, "cancelled", None)
    assert (await http.post(f"/handlers/{handler_id}/cancel")).status_code == 404
    sent = await http.post(f"/events/{handler_id}", json={"event": {"type": "X"}})
    assert sent.status_code == 409


@pytest.mark.parametrize("flow", ["slow", "greet"], ids=["running", "ended"])
async def test_a_purged_handler_is_gone(http: httpx.AsyncClient, flow: str) -> None:
    handler_id = await started(http, flow, start_event={"key": "never"})
    if flow == "greet":
        await ended(http, handler_id)
    answer = await http.post(f"/handlers/{handler_id}/cancel", params={"purge": "TRUE"})
    assert (answer.status_code, answer.json()) == (200, {"status": "deleted"})
    assert (await http.get(f"/handlers/{handler_id}")).status_code == 404
    assert (await http.get(f"/events/{handler_id}")).status_code == 404


async def test_handlers_are_listed_by_status_and_workflow() -> None:
    async with listening(served(Config(drain=1.0))) as url, httpx.AsyncClient(base_url=url) as http:
        for flow in ("greet", "greet", "fail"):
            await http.post(f"/workflows/{flow}/run", json={})
        await started(http, "slow", start_event={"key": "never"})

        async def listed(query: str) -> list[str]:
            body = (await http.get(f"/handlers{query}")).json()
            assert list(body) == ["handlers"]
            assert all(set(handler) == HANDLER for handler in body["handlers"])
            return [handler["workflow_name"] for handler in body["handlers"]]

        assert await listed("") == ["slow", "fail", "greet", "greet"]
        assert await listed("?status=&workflow_name=%20") == ["slow", "fail", "greet", "greet"]
        assert await listed("?status=running&status=%20failed") == ["slow", "fail"]
        assert await listed("?status=completed&workflow_name=fail") == []
        assert await listed("?workflow_name=fail&workflow_name=slow&workflow_name=") == ["slow", "fail"]
        assert await listed("?status=none") == []
        assert await listed("?workflow_name=%00") == []


async def test_pages_of_handlers_follow_each_other() -> None:
    async with listening(served()) as url, httpx.AsyncClient(base_url=url) as http:
        made = [(await http.post("/workflows/greet/run", json={})).json()["handler_id"] for _ in range(5)]
        seen, cursor, pages = [], "", 0
        while True:
            body = (await http.get("/handlers", params={"limit": 2, "cursor": cursor})).json()
            seen += [handler["handler_id"] for handler in body["handlers"]]
            pages += 1
            cursor = body["next_cursor"]
            if cursor is None:
                break
        assert (seen, pages) == (made[::-1], 3)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "cursor=nonsense", "a&" * 2000], ids=range(6)
)
async def test_a_nonsensical_page_is_refused(http: httpx.AsyncClient, query: str) -> None:
    answer = await http.get(f"/handlers?{query}")
    assert answer.status_code == 400
    assert detail(answer)


async def test_a_run_outlives_the_client_that_waits_for_it(http: httpx.AsyncClient, url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as impatient:
        body = {"start_event": {"key": "left"}, "handler_id": "left"}
        waiting = asyncio.create_task(impatient.post("/workflows/slow/run", json=body))
        while (await http.get("/handlers/left")).status_code == 404:
            await asyncio.sleep(0.01)
        await opened(http, "left", "StreamEvent")
        waiting.cancel()
    flows.Slow.gates["left"].set()
    assert (await ended(http, "left")).json()["status"] == "completed"

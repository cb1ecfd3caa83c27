"""The public client, llama-agents-client, as it is, by every method it has."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from llama_agents.client import WorkflowClient
from workflows import Context
from workflows.events import StartEvent, StopEvent

from stepway.runner import Config
from tests.stepway.runner.api import flows
from tests.stepway.runner.api.conftest import listening, served


@pytest.fixture
async def client(url: str) -> AsyncIterator[WorkflowClient]:
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        yield WorkflowClient(httpx_client=http)


async def read(client: WorkflowClient, handler_id: str, **options: Any) -> list[str]:
    return [event.type async for event in client.get_workflow_events(handler_id, **options)]


async def test_is_healthy(url: str) -> None:
    assert (await WorkflowClient(base_url=url).is_healthy()).status == "healthy"


async def test_list_workflows(client: WorkflowClient) -> None:
    assert "greet" in (await client.list_workflows()).workflows


async def test_get_workflow_schema(client: WorkflowClient) -> None:
    schema = await client.get_workflow_schema("add")
    assert (schema.start["title"], schema.stop["title"]) == ("Sums", "Summed")


async def test_get_workflow_events_schema(client: WorkflowClient) -> None:
    events = (await client.get_workflow_events_schema("wait")).events
    assert "Hidden" in {event["title"] for event in events}


async def test_get_workflow_graph(client: WorkflowClient) -> None:
    graph = (await client.get_workflow_graph("ask")).graph
    assert {"ask", "answered", "Question", "Answer"} <= {node.id for node in graph.nodes}
    assert graph.filter_by_node_type("event").edges


@pytest.mark.parametrize("start", [flows.Sums(numbers=[1, 2]), {"numbers": [1, 2]}], ids=["event", "fields"])
async def test_run_workflow(client: WorkflowClient, start: StartEvent | dict[str, Any]) -> None:
    handler = await client.run_workflow("add", start_event=start)
    assert handler.status == "completed"
    assert handler.result is not None
    assert handler.result.load_event([flows.Summed]) == flows.Summed(total=3, note="")


async def test_run_workflow_without_a_start_event(client: WorkflowClient) -> None:
    handler = await client.run_workflow("greet")
    assert handler.result is not None
    event = handler.result.load_event([StopEvent])
    assert isinstance(event, StopEvent)
    assert event.result == "Hello, World!"


async def test_run_workflow_goes_on(client: WorkflowClient) -> None:
    await client.run_workflow("count", handler_id="client count")
    handler = await client.run_workflow("count", handler_id="client count")
    assert handler.result is not None
    assert handler.result.value == {"result": 2}


async def test_run_workflow_with_a_context(client: WorkflowClient) -> None:
    flow = flows.Counting()
    context: Context[Any] = Context(flow)
    await flow.run(ctx=context)
    for given in (context, context.to_dict()):
        handler = await client.run_workflow("count", context=given)
        assert handler.result is not None
        assert handler.result.value == {"result": 2}


async def test_run_workflow_that_fails(client: WorkflowClient) -> None:
    with pytest.raises(httpx.HTTPStatusError, match=r"500 .*no luck"):
        await client.run_workflow("fail")


async def test_run_workflow_that_there_is_not(client: WorkflowClient) -> None:
    with pytest.raises(httpx.HTTPStatusError, match=r"404 .*Workflow not found"):
        await client.run_workflow("none")


async def test_run_workflow_with_a_bad_start_event(client: WorkflowClient) -> None:
    with pytest.raises(httpx.HTTPStatusError, match=r"400 .*at least 1 item"):
        await client.run_workflow("add", start_event={"numbers": []})


@pytest.mark.parametrize("start", [flows.Sums(numbers=[1, 2]), {"numbers": [1, 2]}], ids=["event", "fields"])
async def test_run_workflow_nowait(client: WorkflowClient, start: StartEvent | dict[str, Any]) -> None:
    handler = await client.run_workflow_nowait("add", start_event=start)
    assert handler.status == "running"
    over = await client.wait_for_handler(handler.handler_id, timeout=60, poll_interval=0.02, backoff="constant")
    assert over.result is not None
    assert over.result.value["total"] == 3


async def test_get_workflow_events(client: WorkflowClient) -> None:
    handler = await client.run_workflow_nowait("greet")
    stream = client.get_workflow_events(handler.handler_id)
    events = [event async for event in stream]
    assert [event.type for event in events] == ["StreamEvent"] * 3 + ["StopEvent"]
    assert stream.last_sequence == 5
    assert events[1].load_event([flows.StreamEvent]) == flows.StreamEvent(sequence=1)
    assert await read(client, handler.handler_id, after_sequence=stream.last_sequence) == []
    assert await read(client, handler.handler_id, after_sequence="now") == []
    assert await read(client, handler.handler_id, after_sequence=3) == ["StopEvent"]
    assert "StepStateChanged" in await read(client, handler.handler_id, include_internal_events=True)


async def test_get_workflow_events_of_nothing(client: WorkflowClient) -> None:
    with pytest.raises(ValueError, match="Handler not found"):
        await read(client, "none")


@pytest.mark.parametrize(
    "event", [flows.Answer(response="me"), {"type": "Answer", "value": {"response": "me"}}], ids=["event", "dict"]
)
@pytest.mark.parametrize("step", [None, "answered"])
async def test_send_event(client: WorkflowClient, event: Any, step: str | None) -> None:
    handler = await client.run_workflow_nowait("ask")
    stream = client.get_workflow_events(handler.handler_id)
    seen = []
    async for one in stream:
        seen.append(one.type)
        if one.type == "Question":
            assert (await client.send_event(handler.handler_id, event, step)).status == "sent"
    assert seen == ["Question", "StopEvent"]
    over = await client.get_handler(handler.handler_id)
    assert over.result is not None
    assert over.result.value == {"result": {"response": "me"}}


async def test_send_event_that_is_refused(client: WorkflowClient) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        await client.send_event("none", flows.Answer(response="me"))
    handler = await client.run_workflow("greet")
    with pytest.raises(httpx.HTTPStatusError, match="409"):
        await client.send_event(handler.handler_id, flows.Answer(response="me"))


@pytest.mark.parametrize("purge", [False, True])
async def test_cancel_handler(client: WorkflowClient, purge: bool) -> None:
    handler = await client.run_workflow_nowait("slow", start_event={"key": "never"})
    done = await client.cancel_handler(handler.handler_id, purge=purge)
    assert done.status == ("deleted" if purge else "cancelled")
    if purge:
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            await client.get_handler(handler.handler_id)
    else:
        with pytest.raises(httpx.HTTPStatusError, match=r"500 .*cancelled"):
            await client.get_handler(handler.handler_id)


async def test_get_handlers(client: WorkflowClient) -> None:
    handler = await client.run_workflow("greet")
    assert handler.run_id in {one.run_id for one in (await client.get_handlers()).handlers}
    found = (await client.get_handlers(status=["completed", "failed"], workflow_name=["greet"])).handlers
    assert {one.workflow_name for one in found} == {"greet"}
    assert handler.run_id in {one.run_id for one in found}
    assert (await client.get_handlers(status=["cancelled"], workflow_name=["greet"])).handlers == []


async def test_get_handler_and_get_result(client: WorkflowClient) -> None:
    handler = await client.run_workflow("greet")
    got = await client.get_handler(handler.handler_id)
    assert (got.run_id, got.status, got.result) == (handler.run_id, "completed", handler.result)
    assert await client.get_result(handler.handler_id) == got


async def test_wait_for_handler_gives_up(client: WorkflowClient) -> None:
    handler = await client.run_workflow_nowait("slow", start_event={"key": "patience"})
    with pytest.raises(TimeoutError):
        await client.wait_for_handler(handler.handler_id, timeout=0.2, poll_interval=0.05)
    flows.Slow.gates.setdefault("patience", asyncio.Event()).set()
    assert (await client.wait_for_handler(handler.handler_id, timeout=60, poll_interval=0.05)).status == "completed"


class Cutting:
    """A proxy that breaks each of its first connections off after some bytes of the answer."""

    def __init__(self, url: str, cuts: int, after: int) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.to = host, int(port)
        self._cuts = cuts
        self._after = after
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        left = self._after if self.connections <= self._cuts else 1 << 60
        from_server, to_server = await asyncio.open_connection(*self.to)
        to_server.write(await reader.readuntil(b"\r\n\r\n"))
        while left > 0 and (data := await from_server.read(min(left, 65536))):
            writer.write(data)
            left -= len(data)
        to_server.close()
        writer.close()


@asynccontextmanager
async def behind(proxy: Cutting) -> AsyncIterator[str]:
    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_get_workflow_events_comes_again_after_a_cut(url: str, client: WorkflowClient) -> None:
    body = {"events": 50, "size": 100}
    handler = await client.run_workflow_nowait("many", start_event=body)
    proxy = Cutting(url, cuts=3, after=2500)
    async with behind(proxy) as cutting:
        stream = WorkflowClient(base_url=cutting).get_workflow_events(handler.handler_id)
        events = [event async for event in stream]
    assert [event.value.get("sequence") for event in events[:-1]] == list(range(50))
    assert events[-1].type == "StopEvent"
    assert proxy.connections == 4


async def test_get_workflow_events_comes_again_when_the_server_stops() -> None:
    """One server stops; the client's next connection, to the same address, meets another one."""
    first, second = served(Config(drain=1.1)), served(Config(drain=1.1))
    body = {"start_event": {"key": "moved"}, "handler_id": "moved"}
    async with listening(second) as there:
        proxy = Cutting(there, cuts=0, after=0)
        async with listening(first) as here, httpx.AsyncClient() as http, behind(proxy) as address:
            for server in (here, there):
                await http.post(f"{server}/workflows/slow/run-nowait", json=body)
            proxy.to = ("127.0.0.1", int(here.rsplit(":", 1)[1]))
            stream = WorkflowClient(base_url=address).get_workflow_events("moved")
            seen: list[tuple[str, Any]] = []
            async for event in stream:
                seen.append((event.type, stream.last_sequence))
                if event.type == "StreamEvent" and len(seen) == 1:
                    proxy.to = ("127.0.0.1", int(there.rsplit(":", 1)[1]))
                    await first.stop()
                    flows.Slow.gates["moved"].set()
    assert [kind for kind, _ in seen] == ["StreamEvent", "StreamEvent", "StopEvent"]
    assert [number for _, number in seen] == sorted({number for _, number in seen})

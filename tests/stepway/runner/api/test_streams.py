"""Streams of events: formats, positions, readers that come again, go, or do not read."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from stepway.runner import Config, WorkflowServer
from tests.stepway.runner.api import flows
from tests.stepway.runner.api.conftest import ended, listening, opened, served

ALL = {"after_sequence": -1}


@pytest.fixture(scope="module")
async def greeted(url: str) -> str:
    """A handler of a run that is over, of which three events and its end are shown."""
    async with httpx.AsyncClient(base_url=url) as http:
        handler_id = (await http.post("/workflows/greet/run", json={})).json()["handler_id"]
        assert isinstance(handler_id, str)
        return handler_id


def parsed(text: str) -> list[tuple[int, dict[str, Any]]]:
    """The numbers and envelopes of Server-Sent Events."""
    found = []
    for block in text.split("\n\n")[:-1]:
        number, data = block.split("\n")
        found.append((int(number.removeprefix("id: ")), json.loads(data.removeprefix("data: "))))
    return found


async def test_server_sent_events_are_numbered_envelopes(http: httpx.AsyncClient, greeted: str) -> None:
    answer = await http.get(f"/events/{greeted}", params=ALL)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert parsed(answer.text) == [
        *[
            (n + 1, {
                "value": {"sequence": n}, "qualified_name": "tests.stepway.runner.api.flows.StreamEvent",
                "type": "StreamEvent", "types": None,
            })
            for n in range(3)
        ],
        (5, {
            "value": {"result": "Hello, World!"}, "qualified_name": "workflows.events.StopEvent", "type": "StopEvent",
            "types": None,
        }),
    ]  # fmt: skip


async def test_lines_of_json_have_no_numbers(http: httpx.AsyncClient, greeted: str) -> None:
    answer = await http.get(f"/events/{greeted}", params={**ALL, "sse": "false"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["type"] for line in answer.text.splitlines()] == ["StreamEvent"] * 3 + ["StopEvent"]


async def test_the_librarys_own_events_are_shown_when_asked_for(http: httpx.AsyncClient, greeted: str) -> None:
    answer = await http.get(f"/events/{greeted}", params={**ALL, "include_internal": "true"})
    events = parsed(answer.text)
    assert [number for number, _ in events] == list(range(6))
    assert events[0][1]["type"] == "StepStateChanged"
    assert events[0][1]["types"] == ["InternalDispatchEvent"]


async def test_qualified_names_may_be_left_out(http: httpx.AsyncClient, greeted: str) -> None:
    answer = await http.get(f"/events/{greeted}", params={**ALL, "include_qualified_name": "false"})
    assert {event["qualified_name"] for _, event in parsed(answer.text)} == {None}
    assert parsed(answer.text)[0][1]["value"] == {"sequence": 0}


@pytest.mark.parametrize(
    ("query", "last_id", "numbers"),
    [
        ("after_sequence=-1", None, [1, 2, 3, 5]), ("after_sequence=-7", None, [1, 2, 3, 5]), ("after_sequence=2", None, [3, 5]),
        ("after_sequence=-1&acquire_timeout=nonsense", None, [1, 2, 3, 5]), ("after_sequence=0", "2", [3, 5]), ("", "2", [3, 5]),
        ("after_sequence=2", "nonsense", [3, 5]), ("after_sequence=now", "3", [5]), ("", "-1", [1, 2, 3, 5]),
    ],
)  # fmt: skip
async def test_a_stream_begins_after_a_number(
    http: httpx.AsyncClient, greeted: str, query: str, last_id: str | None, numbers: list[int]
) -> None:
    headers = {} if last_id is None else {"last-event-id": last_id}
    answer = await http.get(f"/events/{greeted}?{query}", headers=headers)
    assert [number for number, _ in parsed(answer.text)] == numbers


async def test_the_last_id_is_not_for_lines(http: httpx.AsyncClient, greeted: str) -> None:
    answer = await http.get(f"/events/{greeted}?sse=false&after_sequence=-1", headers={"last-event-id": "3"})
    assert len(answer.text.splitlines()) == 4


@pytest.mark.parametrize(
    "query", ["", "after_sequence=now", "after_sequence=NOW", "after_sequence=5", "after_sequence=999"]
)
async def test_nothing_is_left(http: httpx.AsyncClient, greeted: str, query: str) -> None:
    answer = await http.get(f"/events/{greeted}?{query}")
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("after", ["x", "", "1.5", "1_0", "9" * 30, "%00", "1e3"])
async def test_a_nonsensical_position_is_refused(http: httpx.AsyncClient, greeted: str, after: str) -> None:
    answer = await http.get(f"/events/{greeted}?after_sequence={after}")
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("Invalid after_sequence")


@pytest.mark.parametrize(("flow", "kind"), [("fail", "WorkflowFailedEvent"), ("slow", "WorkflowCancelledEvent")])
async def test_every_end_ends_the_stream(http: httpx.AsyncClient, flow: str, kind: str) -> None:
    handler_id = (await http.post(f"/workflows/{flow}/run-nowait", json={"start_event": {"key": "never"}})).json()[
        "handler_id"
    ]
    reading = asyncio.create_task(http.get(f"/events/{handler_id}", params=ALL))
    if flow == "slow":
        await opened(http, handler_id, "StreamEvent")
        await http.post(f"/handlers/{handler_id}/cancel")
    last = parsed((await reading).text)[-1][1]
    assert (last["type"], last["types"]) == (kind, ["StopEvent"])


async def test_events_come_as_they_are_written_to_all_readers(http: httpx.AsyncClient) -> None:
    await http.post("/workflows/slow/run-nowait", json={"start_event": {"key": "live"}, "handler_id": "live"})
    reached = [asyncio.Event() for _ in range(5)]

    async def read(reader: int) -> list[int]:
        numbers = []
        async with http.stream("GET", "/events/live", params=ALL) as events:
            async for line in events.aiter_lines():
                if line.startswith("id: "):
                    numbers.append(int(line[4:]))
                    reached[reader].set()
        return numbers

    readers = [asyncio.create_task(read(reader)) for reader in range(5)]
    for one in reached:
        await one.wait()
    flows.Slow.gates["live"].set()
    everything = [await reader for reader in readers]
    assert everything == [everything[0]] * 5
    assert len(everything[0]) == 3


async def test_many_readers_of_whom_half_come_again_see_all(http: httpx.AsyncClient, url: str) -> None:
    await http.post("/workflows/slow/run-nowait", json={"start_event": {"key": "crowd"}, "handler_id": "crowd"})
    host, port = url.removeprefix("http://").split(":")

    async def read(after: int, until: int | None) -> list[int]:
        """Numbers of events; with `until`, the reader goes away abruptly when it has seen that many."""
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /events/crowd?after_sequence={after} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        numbers: list[int] = []
        while (line := await reader.readline()) not in (b"", b"0\r\n"):
            if line.startswith(b"id: "):
                numbers.append(int(line[4:]))
            if len(numbers) == until:
                break
        writer.transport.abort()
        return numbers

    async def come_again() -> list[int]:
        first = await read(-1, until=1)
        gone.append(first)
        return first + await read(first[-1], until=None)

    gone: list[list[int]] = []
    readers = [asyncio.create_task(come_again() if n % 2 else read(-1, until=None)) for n in range(200)]
    async with asyncio.timeout(120):
        while len(gone) < 100:
            await asyncio.sleep(0.05)
        flows.Slow.gates["crowd"].set()
        everything = await asyncio.gather(*readers)
    assert len(everything[0]) == 3
    assert everything == [everything[0]] * 200


async def test_a_stream_of_a_purged_run_ends(http: httpx.AsyncClient) -> None:
    await http.post("/workflows/slow/run-nowait", json={"start_event": {"key": "never"}, "handler_id": "purged"})
    async with http.stream("GET", "/events/purged", params=ALL) as events:
        assert (await http.post("/handlers/purged/cancel?purge=true")).json() == {"status": "deleted"}
        await events.aread()
    assert (await http.get("/events/purged")).status_code == 404


async def test_now_is_after_what_has_been_written(http: httpx.AsyncClient) -> None:
    await http.post("/workflows/slow/run-nowait", json={"start_event": {"key": "now"}, "handler_id": "now"})
    await opened(http, "now", "StreamEvent")
    async with http.stream("GET", "/events/now") as events:
        flows.Slow.gates["now"].set()
        text = (await events.aread()).decode()
    assert [event["value"] for _, event in parsed(text)] == [{"sequence": 1}, {"result": "let go"}]


async def test_a_text_with_odd_line_ends_stays_on_its_line(http: httpx.AsyncClient) -> None:
    handler_id = (await http.post("/workflows/odd/run", json={"start_event": {"kind": "text"}})).json()["handler_id"]
    for sse in ("true", "false"):
        answer = await http.get(f"/events/{handler_id}", params={**ALL, "sse": sse})
        lines = [line for line in answer.text.splitlines() if "StopEvent" in line]
        assert json.loads(lines[0].removeprefix("data: "))["value"] == {"result": "a\0b\u2028"}


async def test_a_long_stream_is_whole(http: httpx.AsyncClient) -> None:
    body = {"start_event": {"events": 1000, "size": 2000}, "handler_id": "long"}
    await http.post("/workflows/many/run-nowait", json=body)
    answer = await http.get("/events/long", params=ALL)
    events = parsed(answer.text)
    assert [event["value"]["sequence"] for _, event in events[:-1]] == list(range(1000))
    assert events[-1][1]["type"] == "StopEvent"


async def test_a_head_has_no_events(http: httpx.AsyncClient) -> None:
    await http.post("/workflows/slow/run-nowait", json={"start_event": {"key": "head"}, "handler_id": "head"})
    answer = await http.head("/events/head")
    assert (answer.status_code, answer.content) == (200, b"")
    flows.Slow.gates["head"].set()


@pytest.fixture(scope="module")
async def hasty() -> AsyncIterator[tuple[WorkflowServer, str]]:
    """A server that soon sends a heartbeat, and soon lets go of who does not read."""
    server = served(Config(heartbeat=0.2, stream_stall=0.5, drain=1.5))
    async with listening(server) as url:
        yield server, url


def read_all(connection: socket.socket) -> None:
    while connection.recv(1 << 20):
        pass


async def none_open(server: WorkflowServer) -> None:
    async with asyncio.timeout(60):
        while len(server.streams):
            await asyncio.sleep(0.02)


async def test_a_silent_stream_has_heartbeats(hasty: tuple[WorkflowServer, str]) -> None:
    async with httpx.AsyncClient(base_url=hasty[1]) as http:
        await http.post("/workflows/slow/run-nowait", json={"start_event": {"key": "hb"}, "handler_id": "hb"})
        beats = 0
        async with http.stream("GET", "/events/hb", params=ALL) as events:
            async for line in events.aiter_lines():
                beats += line == ": heartbeat"
                if beats == 3:
                    flows.Slow.gates["hb"].set()
        assert beats >= 3


async def test_lines_have_no_heartbeats(hasty: tuple[WorkflowServer, str]) -> None:
    async with httpx.AsyncClient(base_url=hasty[1]) as http:
        await http.post("/workflows/slow/run-nowait", json={"start_event": {"key": "lines"}, "handler_id": "lines"})
        await opened(http, "lines", "StreamEvent")
        async with http.stream("GET", "/events/lines", params={**ALL, "sse": "false"}) as lines:
            beats = 0
            async with http.stream("GET", "/events/lines") as events:
                async for line in events.aiter_lines():
                    beats += line == ": heartbeat"
                    if beats == 3:
                        break
            flows.Slow.gates["lines"].set()
            text = (await lines.aread()).decode()
        assert all(json.loads(line) for line in text.splitlines())


async def test_a_reader_that_goes_away_is_noticed(hasty: tuple[WorkflowServer, str]) -> None:
    server, url = hasty
    async with httpx.AsyncClient(base_url=url) as http:
        await http.post("/workflows/slow/run-nowait", json={"start_event": {"key": "gone"}, "handler_id": "gone"})
        for _ in range(5):
            await opened(http, "gone", "StreamEvent")
        await none_open(server)
        assert (await http.get("/handlers/gone")).status_code == 202
        flows.Slow.gates["gone"].set()


async def test_a_reader_that_never_reads_is_let_go(hasty: tuple[WorkflowServer, str]) -> None:
    server, url = hasty
    host, port = url.removeprefix("http://").split(":")
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await http.post(
            "/workflows/many/run", json={"start_event": {"events": 300, "size": 100_000}, "handler_id": "deaf"}
        )
        with socket.create_connection((host, int(port))) as deaf:
            deaf.sendall(b"GET /events/deaf?after_sequence=-1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(30):
                while not len(server.streams):
                    await asyncio.sleep(0.01)
            await none_open(server)
            with pytest.raises(ConnectionResetError):  # what is buffered is thrown away, not kept for it
                await asyncio.to_thread(read_all, deaf)
        assert (await ended(http, "deaf")).json()["status"] == "completed"


async def test_a_slow_reader_gets_everything(hasty: tuple[WorkflowServer, str]) -> None:
    async with httpx.AsyncClient(base_url=hasty[1], timeout=60) as http:
        await http.post(
            "/workflows/many/run", json={"start_event": {"events": 100, "size": 100_000}, "handler_id": "slow"}
        )
        size = 0
        async with http.stream("GET", "/events/slow", params=ALL) as events:
            async for piece in events.aiter_bytes(1_000_000):
                size += len(piece)
                await asyncio.sleep(0.05)
        assert size > 100 * 100_000


async def test_a_stopping_server_breaks_streams_off() -> None:
    """A normal end would say that the run is over, and clients would not come again."""
    server = served(Config(drain=1.2))
    async with listening(server) as url, httpx.AsyncClient(base_url=url) as http:
        await http.post("/workflows/slow/run-nowait", json={"start_event": {"key": "stop"}, "handler_id": "stop"})
        waiting = asyncio.create_task(http.post("/workflows/slow/run", json={"start_event": {"key": "stop"}}))
        await opened(http, "stop", "StreamEvent")
        async with httpx.AsyncClient(base_url=url) as other, other.stream("GET", "/events/stop", params=ALL) as events:
            stopping = asyncio.create_task(server.stop())
            with pytest.raises(httpx.RemoteProtocolError):
                await events.aread()
            await stopping
        answer = await waiting
        assert answer.status_code == 503
        assert "has stopped" in answer.json()["detail"]


async def test_a_run_that_ends_while_the_server_stops_ends_its_stream() -> None:
    server = served(Config(drain=20))
    async with listening(server) as url, httpx.AsyncClient(base_url=url) as http:
        body = {"start_event": {"key": "drained"}, "handler_id": "drained"}
        waiting = asyncio.create_task(http.post("/workflows/slow/run", json=body))
        while (await http.get("/handlers/drained")).status_code == 404:
            await asyncio.sleep(0.01)
        await opened(http, "drained", "StreamEvent")
        async with http.stream("GET", "/events/drained", params=ALL) as events:
            stopping = asyncio.create_task(server.stop())
            while server.runs.started:
                await asyncio.sleep(0)
            flows.Slow.gates["drained"].set()
            text = (await events.aread()).decode()
        await stopping
        assert parsed(text)[-1][1]["value"] == {"result": "let go"}
        assert (await waiting).json()["status"] == "completed"

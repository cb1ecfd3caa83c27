"""Many streams at once, clients that leave, keys that are revoked."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import httpx
import pytest

from services.gateway.limits import Limits
from shared.errors import Problem
from tests.services.gateway import worker as does
from tests.services.gateway.conftest import Bench, Serve
from tests.services.gateway.test_requests import error_of
from tests.services.gateway.worker import CHAT, Answer, Behaviour, Seen, chat_event


async def open_stream(http: httpx.AsyncClient) -> tuple[httpx.Response, AsyncIterator[str]]:
    request = http.build_request("POST", "/chat/completions", json={**CHAT, "stream": True})
    response = await http.send(request, stream=True)
    return response, response.aiter_lines()


async def last_event(lines: AsyncIterator[str]) -> dict[str, dict[str, str]]:
    found = [line async for line in lines if line.startswith("data: ")][-1]
    event: dict[str, dict[str, str]] = json.loads(found.removeprefix("data: "))
    return event


async def test_64_streams_at_once_share_the_workers(serve: Serve) -> None:
    together = asyncio.Event()

    async def behaviour(seen: Seen, answer: Answer) -> None:
        await answer.begin_events()
        for number in range(20):
            await answer.chunk(chat_event(f"{seen.body['seed']}:{number}"))
            await together.wait() if number == 3 else await asyncio.sleep(0)
        await answer.end()

    bench = await serve(capacity=16)
    for _ in range(4):
        await bench.worker(behaviour)

    async def one(http: httpx.AsyncClient, seed: int) -> list[str]:
        async with http.stream("POST", "/chat/completions", json={**CHAT, "stream": True, "seed": seed}) as response:
            events = [json.loads(line[6:]) async for line in response.aiter_lines() if line]
            return [event["choices"][0]["delta"]["content"] for event in events]

    async with bench.http as http:
        asking = [asyncio.create_task(one(http, seed)) for seed in range(64)]
        for worker in bench.workers:
            await worker.wait_for(16)
        together.set()
        texts = await asyncio.gather(*asking)
    assert texts == [[f"{seed}:{number}" for number in range(20)] for seed in range(64)]
    assert [worker.most for worker in bench.workers] == [16, 16, 16, 16]


@pytest.mark.parametrize(
    ("behaviour", "stream"), [(does.hang, False), (does.hang, True), (does.stall_mid_stream, True)]
)
async def test_a_client_that_leaves_ends_the_worker_s_work_at_once(
    serve: Serve, behaviour: Behaviour, stream: bool
) -> None:
    bench = await serve(capacity=1)
    worker = await bench.worker(behaviour)
    reader, writer = await asyncio.open_connection(*httpx.URL(bench.base).netloc.decode().split(":"))
    body = json.dumps({**CHAT, "stream": stream}).encode()
    head = (
        f"POST /endpoints/{bench.endpoint_id}/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {bench.key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await worker.wait_for(1)
    if behaviour is does.stall_mid_stream:
        await reader.readuntil(b"one ")
    left_at = asyncio.get_running_loop().time()
    writer.close()
    await asyncio.wait_for(worker.seen[0].ended.wait(), 1)
    assert worker.seen[0].client_gone
    assert asyncio.get_running_loop().time() - left_at < 1
    usage = await bench.used()
    assert (usage.error, usage.status) == ("client_closed", 200 if behaviour is does.stall_mid_stream else 499)
    worker.behaviour = does.well  # and its place is free again
    async with bench.http as http:
        assert (await http.post("/completions", json={})).status_code == 200


async def test_a_client_that_leaves_the_line_is_never_sent_to_a_worker(serve: Serve) -> None:
    bench = await serve(capacity=1)
    worker = await bench.worker(does.hang)
    async with bench.http as http:
        first = asyncio.create_task(http.post("/completions", json={"prompt": "first"}))
        await worker.wait_for(1)
        second = asyncio.create_task(http.post("/completions", json={"prompt": "second"}))
        async with asyncio.timeout(5):
            while not bench.gateway._balancer._pools[bench.endpoint_id].waiters:
                await asyncio.sleep(0.002)
        second.cancel()
        await bench.used(1)
        worker.behaviour = does.well
        first.cancel()
        assert (await http.post("/completions", json={"prompt": "third"})).status_code == 200
    assert [seen.body["prompt"] for seen in worker.seen] == ["first", "third"]


async def test_a_client_that_does_not_read_is_let_go(serve: Serve) -> None:
    async def flood(seen: Seen, answer: Answer) -> None:
        await answer.begin_events()
        while True:
            await answer.chunk(b"data: " + b"x" * 60_000 + b"\n\n")

    bench = await serve(Limits(idle_seconds=0.3))
    worker = await bench.worker(flood)
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", httpx.URL(bench.base).port))
        head = (
            f"POST /endpoints/{bench.endpoint_id}/v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {bench.key}\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
        )
        lazy.sendall(head.encode() + b'{"stream":true}')
        await worker.wait_for(1)
        await asyncio.wait_for(worker.seen[0].ended.wait(), 3)
        usage = await bench.used()
    assert (usage.error, usage.worker_id) == ("worker_timeout", "w0")
    assert usage.bytes < 50_000_000  # it was held back rather than kept in memory


async def test_streams_per_key_are_bounded_and_counted_down(serve: Serve) -> None:
    bench = await serve(Limits(streams_per_key=2))
    await bench.worker(does.stall_mid_stream)
    bench.keys.grant("another", bench.endpoint_id)
    async with bench.http as http:
        opened = [await open_stream(http) for _ in range(2)]
        third = await http.post("/chat/completions", json={**CHAT, "stream": True})
        assert (third.status_code, error_of(third)["code"]) == (429, "too_many_streams")
        assert third.headers["retry-after"] == "1"
        request = http.build_request(
            "POST", "/chat/completions", json={**CHAT, "stream": True}, headers={"authorization": "Bearer another"}
        )
        other = await http.send(request, stream=True)
        assert other.status_code == 200
        await opened[0][0].aclose()
        await bench.used(2)
        again, _ = await open_stream(http)
        assert again.status_code == 200
        for response in (again, opened[1][0], other):
            await response.aclose()
        await bench.used(5)
    assert not bench.gateway._streams


@pytest.mark.parametrize("behaviour", [does.die, does.hang, does.refuse(500, b""), does.die_mid_stream, does.page])
async def test_streams_that_fail_are_counted_down_too(serve: Serve, behaviour: Behaviour) -> None:
    bench = await serve(Limits(streams_per_key=1, first_byte_seconds=0.05))
    await bench.worker(behaviour)
    async with bench.http as http:
        for _ in range(3):
            assert (await http.post("/chat/completions", json={**CHAT, "stream": True})).status_code != 429


QUICK = Limits(recheck_seconds=0.05, recheck_retry_seconds=0.02, access_seconds=0.02, cache_seconds=0.05)


async def test_a_revoked_key_ends_its_streams(serve: Serve) -> None:
    bench = await serve(QUICK)
    worker = await bench.worker(does.stall_mid_stream)
    async with bench.http as http:
        response, lines = await open_stream(http)
        await asyncio.sleep(0.2)  # several checks go well
        assert not worker.seen[0].ended.is_set()
        bench.keys.revoke(bench.key)
        async with asyncio.timeout(1):
            event = await last_event(lines)
        assert event["error"]["code"] == "unauthenticated"
        assert response.status_code == 200
        await asyncio.wait_for(worker.seen[0].ended.wait(), 1)
        assert (await http.get("/models")).status_code == 401


async def test_a_revoked_key_ends_an_answer_that_is_awaited(serve: Serve) -> None:
    bench = await serve(QUICK)
    worker = await bench.worker(does.hang)
    async with bench.http as http:
        asking = asyncio.create_task(http.post("/completions", json={}))
        await worker.wait_for(1)
        bench.keys.revoke(bench.key)
        response = await asking
    assert (response.status_code, error_of(response)["code"]) == (401, "unauthenticated")
    await asyncio.wait_for(worker.seen[0].ended.wait(), 1)


async def test_a_lost_membership_ends_streams_as_if_the_endpoint_were_not_there(serve: Serve) -> None:
    bench = await serve(QUICK)
    await bench.worker(does.stall_mid_stream)
    async with bench.http as http:
        _, lines = await open_stream(http)
        bench.keys.sees[f"Bearer {bench.key}"].clear()
        async with asyncio.timeout(1):
            assert (await last_event(lines))["error"]["code"] == "not_found"


@pytest.mark.parametrize("fault", [OSError("the database is away"), Problem("unavailable", "Not now.")])
async def test_a_stream_outlives_a_short_outage_of_the_key_check(serve: Serve, fault: Exception) -> None:
    bench = await serve(QUICK)
    worker = await bench.worker(does.stall_mid_stream)
    async with bench.http as http:
        response, _ = await open_stream(http)
        bench.keys.fault = fault
        asked = bench.keys.asked
        while bench.keys.asked < asked + 3:
            await asyncio.sleep(0.005)
        bench.keys.fault = None
        await asyncio.sleep(0.1)
        assert not worker.seen[0].ended.is_set()
        await response.aclose()


async def test_a_stream_whose_key_cannot_be_checked_for_long_ends(serve: Serve) -> None:
    bench = await serve(Limits(recheck_seconds=0.05, recheck_retry_seconds=0.02, access_seconds=0.02, cache_seconds=0,
                               unchecked_seconds=0.3))  # fmt: skip
    worker = await bench.worker(does.stall_mid_stream)
    async with bench.http as http:
        _, lines = await open_stream(http)
        bench.keys.gate = asyncio.Event()  # it does not answer at all
        async with asyncio.timeout(1):
            assert (await last_event(lines))["error"]["code"] == "unavailable"
    await asyncio.wait_for(worker.seen[0].ended.wait(), 1)
    bench.keys.gate.set()


async def test_a_shutdown_ends_streams_with_an_error_event(serve: Serve) -> None:
    bench: Bench = await serve()
    worker = await bench.worker(does.stall_mid_stream)
    async with bench.http as http:
        _, lines = await open_stream(http)
        closing = asyncio.create_task(bench.gateway.aclose())
        assert (await last_event(lines))["error"]["code"] == "unavailable"
        await closing
        assert worker.seen[0].ended.is_set() or await asyncio.wait_for(worker.seen[0].ended.wait(), 1)
        refused = await http.post("/completions", json={})
    assert (refused.status_code, error_of(refused)["code"]) == (503, "unavailable")


async def test_connections_to_a_worker_are_kept(serve: Serve) -> None:
    bench = await serve()
    worker = await bench.worker()
    async with bench.http as http:
        for stream in (True, False, True, False, True, False):
            assert (await http.post("/chat/completions", json={**CHAT, "stream": stream})).status_code == 200
    assert worker.connections == 1

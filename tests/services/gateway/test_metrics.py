"""What is counted, and that an endpoint's series go with it."""

import asyncio

from prometheus_client import CollectorRegistry, generate_latest

from services.gateway.metrics import Metrics
from shared.telemetry.http import Seen as Seeing
from tests.services.gateway import worker as does
from tests.services.gateway.conftest import Serve
from tests.services.gateway.worker import CHAT, Answer, Seen


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"stepway_gateway_{name}", labels)


async def test_requests_are_counted_by_endpoint_operation_and_class(serve: Serve) -> None:
    bench = await serve()
    worker = await bench.worker()
    endpoint = str(bench.endpoint_id)
    async with bench.http as http:
        for _ in range(3):
            await http.post("/chat/completions", json={**CHAT, "stream": True})
        await http.get("/models")
        worker.behaviour = does.die_mid_stream
        await http.post("/chat/completions", json={**CHAT, "stream": True})
        worker.behaviour = does.refuse(400, b"{}")
        await http.post("/embeddings", json={})
        await http.get("/models", headers={"authorization": "Bearer wrong"})
    await bench.used(7)
    count = bench.registry
    assert value(count, "requests_total", endpoint=endpoint, operation="chat.completions", status_class="2xx") == 4
    assert value(count, "requests_total", endpoint=endpoint, operation="models", status_class="2xx") == 1
    assert value(count, "requests_total", endpoint=endpoint, operation="embeddings", status_class="4xx") == 1
    assert value(count, "requests_total", endpoint="", operation="other", status_class="4xx") == 1
    assert value(count, "broken_answers_total", endpoint=endpoint, code="worker_failed") == 1
    assert value(count, "first_byte_seconds_count", endpoint=endpoint) == 4
    assert value(count, "duration_seconds_count", endpoint=endpoint) == 6
    assert value(count, "in_flight", endpoint=endpoint) == 0
    assert value(count, "sent_bytes_total", endpoint=endpoint) == sum(usage.bytes for usage in bench.usages[:6])


async def test_a_usage_tells_what_a_request_was(serve: Serve) -> None:
    bench = await serve()
    await bench.worker()
    async with bench.http as http:
        response = await http.post("/chat/completions", json={**CHAT, "stream": True})
    usage = await bench.used()
    assert usage.endpoint_id == bench.endpoint_id
    assert usage.caller is not None
    assert usage.caller.id == bench.key
    assert (usage.operation, usage.status, usage.error, usage.worker_id) == ("chat.completions", 200, None, "w0")
    assert usage.bytes == len(response.content)
    assert usage.first_byte_at is not None
    assert usage.started < usage.first_byte_at <= usage.ended


async def test_requests_in_flight_are_seen_and_a_removed_endpoint_leaves_nothing(serve: Serve) -> None:
    bench = await serve()
    worker = await bench.worker(does.hang)
    endpoint = str(bench.endpoint_id)
    async with bench.http as http:
        asking = asyncio.create_task(http.post("/completions", json={}))
        await worker.wait_for(1)
        assert value(bench.registry, "in_flight", endpoint=endpoint) == 1
        bench.table.remove(bench.endpoint_id)
        assert value(bench.registry, "in_flight", endpoint=endpoint) == 1
        asking.cancel()
        await bench.used()
    assert endpoint not in generate_latest(bench.registry).decode()


async def test_tokens_are_those_that_the_worker_tells(serve: Serve) -> None:
    bench = await serve()
    told = b'data: {"choices": [{"delta": {"content": "\\"usage\\": {\\"prompt_tokens\\": 999}"}}]}\n\n'
    last = b'data: {"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 5, "total_tokens": 12}}\n\n'

    async def events(seen: Seen, answer: Answer) -> None:
        await answer.begin_events()
        for event in (told, last, b"data: [DONE]\n\n"):
            await answer.chunk(event)
        await answer.end()

    await bench.worker(events)
    async with bench.http as http:
        await http.post("/chat/completions", json={**CHAT, "stream": True})
        usage = await bench.used(1)
        assert (usage.prompt_tokens, usage.completion_tokens) == (5, 7)
        bench.workers[0].behaviour = does.refuse(200, b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}')
        await http.post("/chat/completions", json=CHAT)
        bench.workers[0].behaviour = does.refuse(200, b'{"usage":{"prompt_tokens":99999999999,"completion_tokens":-1}}')
        await http.post("/chat/completions", json=CHAT)
    await bench.used(3)
    endpoint = str(bench.endpoint_id)
    assert value(bench.registry, "tokens_total", endpoint=endpoint, direction="prompt") == 8
    assert value(bench.registry, "tokens_total", endpoint=endpoint, direction="completion") == 11


async def test_a_worker_s_work_joins_the_trace_of_the_request(serve: Serve) -> None:
    bench = await serve(wrap=lambda app: app.add_middleware(Seeing))
    worker = await bench.worker()
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "theirs=1"}
    broken = {"traceparent": "00-nothing", "tracestate": "theirs=1"}
    async with bench.http as http:
        answers = [await http.post("/chat/completions", json=CHAT, headers=sent) for sent in (parent, broken, {})]
    seen = [one.headers for one in worker.seen]
    assert [one["traceparent"] for one in seen] == [answer.headers["traceparent"] for answer in answers]
    assert seen[0]["traceparent"].split("-")[1] == parent["traceparent"].split("-")[1]
    assert [one.get("tracestate") for one in seen] == ["theirs=1", None, None]


async def test_two_gateways_can_live_in_one_process() -> None:
    Metrics(CollectorRegistry())
    Metrics(CollectorRegistry())

"""What is counted, and that an endpoint's series go with it."""

import asyncio

from prometheus_client import CollectorRegistry, generate_latest

from services.gateway.metrics import Metrics
from tests.services.gateway import worker as does
from tests.services.gateway.conftest import Serve
from tests.services.gateway.worker import CHAT


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


async def test_two_gateways_can_live_in_one_process() -> None:
    Metrics(CollectorRegistry())
    Metrics(CollectorRegistry())

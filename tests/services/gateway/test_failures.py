"""Workers that fail, hang or talk nonsense: what the client sees, and who is asked instead."""

import asyncio
import json
import socket

import httpx
import pytest

from services.gateway.limits import Limits
from tests.services.gateway import worker as does
from tests.services.gateway.conftest import Bench, Serve
from tests.services.gateway.test_requests import error_of
from tests.services.gateway.worker import CHAT, Answer, Behaviour, Seen, Worker, chat_event


async def ask(bench: Bench, *, stream: bool = False) -> httpx.Response:
    async with bench.http as http:
        return await http.post("/chat/completions", json={**CHAT, "stream": stream})


def events_of(response: httpx.Response) -> list[str]:
    return [part.removeprefix("data: ") for part in response.text.split("\n\n") if part]


FAILING: list[Behaviour] = [
    does.die,
    does.die_after_headers,
    does.garbage,
    does.empty,
    does.page,
    does.refuse(502, b"bad gateway", kind="text/plain"),
    does.refuse(503, b'{"error": {"message": "Loading model", "code": 503}}'),
    does.refuse(401, b'{"error": {"message": "Invalid API Key"}}'),
    does.refuse(307, b"", "Location: http://127.0.0.1:1/elsewhere"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behaviour", FAILING)
async def test_another_worker_answers_before_the_first_byte(serve: Serve, behaviour: Behaviour, stream: bool) -> None:
    bench = await serve()
    bad, good = await bench.worker(behaviour), await bench.worker()
    response = await ask(bench, stream=stream)
    assert response.status_code == 200
    assert (len(bad.seen), len(good.seen)) == (1, 1)
    usage = await bench.used()
    assert (usage.worker_id, usage.error, usage.status) == ("w1", None, 200)


async def test_a_failed_worker_is_not_asked_again_for_being_idle(serve: Serve) -> None:
    bench = await serve()
    good = await bench.worker(does.hang)
    async with bench.http as http:
        held = asyncio.create_task(http.post("/completions", json={}))
        await good.wait_for(1)
        good.behaviour = does.well
        bad = await bench.worker(does.die)
        assert (await http.post("/completions", json={})).status_code == 200
        held.cancel()
    assert (len(bad.seen), len(good.seen)) == (1, 2)


async def test_a_large_answer_that_breaks_off_early_is_asked_for_again(serve: Serve) -> None:
    async def half(seen: Seen, answer: Answer) -> None:
        await answer.raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{" + b" " * 5000
        )
        answer.reset()

    bench = await serve()
    await bench.worker(half)
    await bench.worker()
    assert (await ask(bench)).json()["choices"][0]["message"]["content"] == "hello"


async def test_a_large_answer_that_breaks_off_late_is_broken_off(serve: Serve) -> None:
    async def half(seen: Seen, answer: Answer) -> None:
        await answer.raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{" + b" " * 5000
        )
        answer.reset()

    bench = await serve(Limits(buffer_bytes=100))
    await bench.worker(half)
    good = await bench.worker()
    with pytest.raises(httpx.RemoteProtocolError):
        await ask(bench)
    assert good.seen == []
    assert (await bench.used()).error == "worker_failed"


async def test_a_worker_where_nobody_listens_is_left_alone(serve: Serve) -> None:
    bench = await serve()
    dead, good = await bench.worker(), await bench.worker()
    await dead.stop()
    for _ in range(6):
        assert (await ask(bench)).status_code == 200
    assert len(good.seen) == 6
    assert {usage.worker_id for usage in bench.usages} == {"w1"}


async def test_the_only_worker_gets_a_second_chance_after_a_reset(serve: Serve) -> None:
    async def once(seen: Seen, answer: Answer) -> None:
        worker.behaviour = does.well
        answer.reset()

    bench = await serve()
    worker = await bench.worker(once)
    assert (await ask(bench)).status_code == 200
    assert len(worker.seen) == 2


async def test_attempts_are_bounded(serve: Serve) -> None:
    bench = await serve(Limits(attempts=3))
    for _ in range(5):
        await bench.worker(does.die)
    response = await ask(bench)
    assert response.status_code == 503
    assert error_of(response)["code"] == "endpoint_unavailable"
    assert sum(len(worker.seen) for worker in bench.workers) == 3


async def test_nonsense_from_everyone_is_a_bad_gateway(serve: Serve) -> None:
    bench = await serve()
    await bench.worker(does.page)
    response = await ask(bench)
    assert (response.status_code, error_of(response)["code"]) == (502, "worker_failed")
    assert "script" not in response.text


async def test_when_all_are_out_the_answer_is_quick_and_says_when_to_come_back(serve: Serve) -> None:
    bench = await serve(Limits(out_seconds=20, queue_seconds=60))
    worker = await bench.worker()
    await worker.stop()
    first, second = await ask(bench), await ask(bench)
    assert first.status_code == second.status_code == 503
    assert "could not be reached" in str(error_of(first)["message"])
    assert str(worker.port) not in first.text
    assert 15 < int(second.headers["retry-after"]) <= 20


async def test_a_worker_comes_back_after_its_time_out(serve: Serve) -> None:
    bench = await serve(Limits(out_seconds=0.05))
    worker = await bench.worker()
    await worker.stop()
    assert (await ask(bench)).status_code == 503
    worker._server = await asyncio.start_server(worker._connection, "127.0.0.1", worker.port)
    await asyncio.sleep(0.06)
    assert (await ask(bench)).status_code == 200


async def test_a_worker_started_anew_is_used_at_once(serve: Serve) -> None:
    bench = await serve(Limits(out_seconds=60))
    worker = await bench.worker()
    await worker.stop()
    assert (await ask(bench)).status_code == 503
    bench.workers[0] = await Worker("w0").start()
    bench.publish()
    assert (await ask(bench)).status_code == 200


async def test_a_connection_that_is_never_accepted_times_out(serve: Serve) -> None:
    bench = await serve(Limits(connect_seconds=0.1))
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(4):  # with its backlog full, the kernel lets further connections wait
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        silent = Worker("silent")
        silent.port = full.getsockname()[1]
        bench.publish(workers=[silent])
        response = await ask(bench)
        for filler in fillers:
            filler.close()
    assert response.status_code == 503
    assert "could not be reached in time" in str(error_of(response)["message"])


async def test_an_error_event_ends_a_stream_that_breaks(serve: Serve) -> None:
    bench = await serve()
    await bench.worker(does.die_mid_stream)
    good = await bench.worker()
    events = events_of(await ask(bench, stream=True))
    assert [json.loads(event)["choices"][0]["delta"]["content"] for event in events[:2]] == ["one ", "two "]
    assert len(events) == 3
    assert json.loads(events[2])["error"]["code"] == "worker_failed"
    assert good.seen == []


@pytest.mark.parametrize("stream", [False, True])
async def test_silence_before_the_first_byte(serve: Serve, stream: bool) -> None:
    bench = await serve(Limits(first_byte_seconds=0.1, total_seconds=0.3))
    worker = await bench.worker(does.hang)
    await bench.worker(does.hang)
    response = await ask(bench, stream=stream)
    assert (response.status_code, error_of(response)["code"]) == (504, "worker_timeout")
    await asyncio.wait_for(worker.seen[0].ended.wait(), 1)
    assert worker.seen[0].client_gone
    assert len(bench.workers[1].seen) == 0  # what is too slow for one worker would keep the others busy too
    used = await bench.used()
    assert 0.08 < used.ended - used.started < (0.25 if stream else 1)


async def test_silence_between_chunks(serve: Serve) -> None:
    bench = await serve(Limits(idle_seconds=0.1))
    worker = await bench.worker(does.stall_mid_stream)
    events = events_of(await ask(bench, stream=True))
    assert json.loads(events[-1])["error"]["code"] == "worker_timeout"
    assert len(events) == 2
    await asyncio.wait_for(worker.seen[0].ended.wait(), 1)


async def test_a_stream_without_end_ends(serve: Serve) -> None:
    async def endless(seen: Seen, answer: Answer) -> None:
        await answer.begin_events()
        while True:
            await answer.chunk(chat_event("more "))
            await asyncio.sleep(0.01)

    bench = await serve(Limits(total_seconds=0.2))
    worker = await bench.worker(endless)
    events = events_of(await ask(bench, stream=True))
    assert len(events) > 3
    assert "longer than 0.2 s" in json.loads(events[-1])["error"]["message"]
    await asyncio.wait_for(worker.seen[0].ended.wait(), 1)

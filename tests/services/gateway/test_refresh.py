"""What the app says to be served is served, though the table has not heard of it yet."""

import asyncio

import httpx
import pytest

from services.gateway.limits import Limits
from tests.services.gateway.conftest import Bench, Serve
from tests.services.gateway.worker import Worker


async def asked(bench: Bench) -> httpx.Response:
    async with bench.http as http:
        return await http.post("/completions", json={"prompt": "a"})


class App:
    """Publishes the bench's workers when it is asked to."""

    def __init__(self) -> None:
        self.bench: Bench | None = None
        self.asked = 0
        self.fault: Exception | None = None

    async def refresh(self) -> None:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        if self.bench is not None:
            self.bench.publish()


@pytest.mark.parametrize("known", [False, True])
async def test_an_endpoint_that_has_just_come_up_is_looked_for(serve: Serve, known: bool) -> None:
    """Nothing is known of it, or that it was stopped."""
    app = App()
    bench = await serve(refresh=app.refresh)
    if known:
        bench.publish(state="stopped", workers=[])
    bench.workers.append(await Worker("w0").start())
    app.bench = bench
    assert (await asked(bench)).status_code == 200
    assert app.asked == 1
    assert (await asked(bench)).status_code == 200
    assert app.asked == 1  # what has workers is not looked for


async def test_an_endpoint_that_is_not_served_is_unavailable_after_the_look(serve: Serve) -> None:
    app = App()
    bench = await serve(refresh=app.refresh)
    for fault in (None, OSError("the app is away")):
        app.fault = fault
        answer = await asked(bench)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "endpoint_unavailable")
        assert answer.headers["retry-after"] == "5"
    assert app.asked == 2


async def test_a_look_does_not_take_for_ever(serve: Serve) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    bench = await serve(Limits(access_seconds=0.05), refresh=hang)
    assert (await asked(bench)).status_code == 503

"""What it costs to be seen: a request through the middleware, and an attempt of a step, with spans off and on.

With spans on they go to a receiver in this process (`tests.otlp`), whose work counts too.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.telemetry import traces
from shared.telemetry.http import Seen
from shared.telemetry.work import step_span
from tests.bench.figures import Figure
from tests.otlp import Receiver

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def run(quick: bool) -> list[Figure]:
    count = 1_000 if quick else 5_000
    bare = asyncio.run(request_us(_answer, count))
    figures = []
    for name, ratio, bound in (("off", None, 100.0), ("on", 1.0, None)):
        with _spans(ratio):
            request, step = asyncio.run(request_us(Seen(_answer), count)), step_us(count)
        figures += [
            Figure(f"a request, spans {name}", request, "µs", bare, "without", at_most=bound, by="difference"),
            Figure(f"a step's attempt, spans {name}", step, "µs", at_most=bound),
        ]
    with _spans(0.01):
        request = asyncio.run(request_us(Seen(_answer), count))
    return [*figures, Figure("a request, 1 of 100 kept", request, "µs", bare, "without", by="difference")]


@contextmanager
def _spans(ratio: float | None) -> Iterator[None]:
    if ratio is None:
        yield
        return
    with Receiver() as receiver:
        traces.start(receiver.url, service="bench", ratio=ratio)
        try:
            yield
        finally:
            traces.stop()


async def request_us(app: ASGIApp, count: int) -> float:
    """Microseconds of one request to an app that answers at once; the best of five rounds."""

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        return

    async def one() -> None:
        scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"test")]}
        await app(scope, receive, send)

    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count):
            await one()
        rounds.append((time.perf_counter() - began) / count * 1e6)
    return min(rounds)


def step_us(count: int) -> float:
    """Microseconds around one attempt that does nothing; the best of five rounds."""
    job, workflow = uuid4(), uuid4()

    def one() -> None:
        with step_span(job, "bench", "step", 1, PARENT, workflow=workflow):
            pass

    return min(_timed(one, count) for _ in range(5))


def _timed(one: Callable[[], None], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        one()
    return (time.perf_counter() - began) / count * 1e6


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})

"""Lines of workers' logs: the latest, and new ones as they come."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from services.cluster.runtimes.base import LogLine
from services.cluster.runtimes.kubernetes import pods, stream
from services.cluster.runtimes.kubernetes.objects import Conflict, Objects
from shared import clock
from shared.jobs.outcomes import Permanent, StepError

Json = dict[str, Any]

_MAX_TAIL = 10_000
_MAX_LINE = 16 * 1024  # characters
_AT_ONCE = 8
_LOOK_AGAIN = 1.0  # seconds between looks for new pods
_SILENCE = 3600.0


async def latest(objects: Objects, workers: Sequence[Json], tail: int) -> list[LogLine]:
    """At most `tail` lines of these pods together, oldest first."""
    tail = max(0, min(tail, _MAX_TAIL))
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(pod: Json) -> list[LogLine]:
        async with places:
            return await of_pod(objects, pod["metadata"]["name"], pods.SERVER, tail)

    found = [line for lines in await asyncio.gather(*map(one, workers)) for line in lines]
    found.sort(key=lambda line: line.time)
    return found[len(found) - min(tail, len(found)) :]


async def of_pod(
    objects: Objects, pod: str, container: str, tail: int, *, previous: bool = False, limit: int = 4 * 1024**2
) -> list[LogLine]:
    """The last lines of one container; none where it has not started, or has gone with its logs."""
    query = [
        ("container", container), ("timestamps", "true"), ("tailLines", str(tail)), ("limitBytes", str(limit)),
        *([("previous", "true")] if previous else []),
    ]  # fmt: skip
    found = []
    try:
        async for line in stream.lines(objects.client, objects.path("Pod", pod, "log"), query, silence=30.0):
            found.append(_parsed(pod, line))
    except Permanent as fault:
        if fault.code in ("cluster_request_refused", "cluster_not_kubernetes"):  # 400, 404: there is no log
            return []
        raise
    return found


async def follow(
    objects: Objects, workers: Callable[[], Awaitable[list[Json] | None]], tail: int
) -> AsyncIterator[LogLine]:
    """The latest lines, then each new one, until `workers` answers None. Pods that come later are followed too."""
    queue: asyncio.Queue[LogLine] = asyncio.Queue(maxsize=1000)
    readers: dict[str, asyncio.Task[None]] = {}
    told: dict[str, datetime] = {}
    for line in await latest(objects, await workers() or [], tail):
        told[line.worker] = line.time
        yield line
    try:
        while (present := await _present(workers)) is not None:
            for pod in present:
                name = pod["metadata"]["name"]
                if name not in readers or (readers[name].done() and _runs(pod)):
                    readers[name] = asyncio.create_task(_read(objects, name, queue, told.get(name)))
            async for line in _until(queue, _LOOK_AGAIN):
                told[line.worker] = line.time
                yield line
    finally:
        for task in readers.values():
            task.cancel()
        await asyncio.gather(*readers.values(), return_exceptions=True)


async def _present(workers: Callable[[], Awaitable[list[Json] | None]]) -> list[Json] | None:
    try:
        return await workers()
    except (StepError, Conflict):  # the API server is away for a moment
        return []


async def _read(objects: Objects, pod: str, queue: asyncio.Queue[LogLine], since: datetime | None) -> None:
    query = [("container", pods.SERVER), ("timestamps", "true"), ("follow", "true")]
    if since is not None:
        query.append(("sinceTime", since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
    with contextlib.suppress(StepError):  # the pod has ended, or starts; the next look decides
        async for raw in stream.lines(objects.client, objects.path("Pod", pod, "log"), query, silence=_SILENCE):
            line = _parsed(pod, raw)
            if since is None or line.time > since:
                await queue.put(line)


async def _until(queue: asyncio.Queue[LogLine], seconds: float) -> AsyncIterator[LogLine]:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        try:
            async with asyncio.timeout_at(end):
                line = await queue.get()
        except TimeoutError:
            return
        yield line


def _runs(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") == "Running"


def _parsed(pod: str, raw: bytes) -> LogLine:
    """`2026-01-02T03:04:05.678901234Z text`; nanoseconds are cut to microseconds."""
    stamp, _, text = raw.decode("utf-8", "replace").partition(" ")
    try:
        time = datetime.fromisoformat(stamp[:26].rstrip("Z") + "+00:00")
    except ValueError:
        return LogLine(worker=pod, time=clock.now(), text=raw.decode("utf-8", "replace")[:_MAX_LINE])
    return LogLine(worker=pod, time=time, text=text[:_MAX_LINE])

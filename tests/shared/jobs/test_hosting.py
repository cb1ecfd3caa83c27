"""A sidecar that has a worker's connection but not its workflows: the worker joins it anew."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shared.db.engine import Database
from shared.jobs.dapr import worker as module
from shared.jobs.dapr.worker import Worker
from shared.jobs.declare import Registry
from tests.shared.jobs.engines import over_dapr
from tests.shared.jobs.test_conformance import JOBS, Number, World, sequence
from tests.testbed.dapr import session_dapr


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await what():
            await asyncio.sleep(0.05)


async def test_a_worker_joins_anew_where_its_workflows_are_not_hosted(
    database: Database, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers: list[Worker] = []
    start = Worker.start

    async def started(worker: Worker) -> None:
        workers.append(worker)
        await start(worker)

    monkeypatch.setattr(Worker, "start", started)
    monkeypatch.setattr(module, "LOOK_EVERY", 0.1)
    registry = Registry()
    registry.add(JOBS, World())
    async with over_dapr(session_dapr(pytestconfig), database, registry) as engine:
        (worker,) = workers

        async def hosted() -> bool:
            hosting = await worker._sidecar.hosting()
            return hosting is not None and hosting.registered and hosting.workers == 1

        await until(hosted)
        before = worker._runtime

        # The sidecar comes into that state by a race of its own; what it would say is said for it, the rest is real.
        async def unhosted() -> bool:
            return worker._runtime is before

        monkeypatch.setattr(worker, "_is_unhosted", unhosted)

        async def joined() -> bool:
            return worker._runtime not in (before, None)

        await until(joined)
        await until(hosted)
        assert worker.dead() == []
        job = await engine.submit(sequence, Number(value=1))
        assert (await engine.until(job))["state"] == "succeeded"

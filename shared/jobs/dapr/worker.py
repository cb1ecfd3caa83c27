"""A process that drives runs for its service: registers the jobs with the sidecar's workflow engine, and answers the app.

Workflows are driven in the threads of Dapr's client; activities on this process's own event loop, where the tools live.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import structlog
from dapr.ext.workflow import WorkflowActivityContext, WorkflowRuntime
from dapr.ext.workflow.logger import LoggerOptions

from shared.jobs.claims import machine_identity, process_identity
from shared.jobs.dapr.activities import Activities
from shared.jobs.dapr.drive import END, STEP, UNDO, WAIT, WAKE, Answer, workflow
from shared.jobs.dapr.ports import JobsPort, Replica, RunOrder, workflow_name
from shared.jobs.dapr.sidecar import Sidecar
from shared.jobs.declare import Registry
from shared.jobs.outcomes import Permanent

BEAT_EVERY = 0.2  # seconds between two beats, beside the time that the app holds each
SILENT = 25.0  # seconds without a beat, after which the runs are taken for lost: before the app does so
AGAIN = 0.5  # seconds after a beat that failed
LOOK_EVERY = 2.0  # seconds between two looks whether the sidecar hosts our workflows
UNHOSTED_LOOKS = 3  # in a row, after which the engine is joined anew
LEAVE_LOOKS, LEAVE_EVERY = 100, 0.1  # seconds: for the sidecar to see that the old connection has ended
STOP_SECONDS = 2.0  # for Dapr's client to end; it may wait for its sidecar much longer
THREADS = 8
QUIET = LoggerOptions(log_level="WARNING", log_handler=logging.NullHandler())  # it has a handler of its own otherwise

log = structlog.get_logger(__name__)


class Worker:
    """Drives runs of `registry`'s jobs. Implements `RunsPort` for the app.

    Reports are worth waiting for (`jobs`); a beat that gets no answer soon (`beats`) is a fault.
    """

    def __init__(
        self, service: str, registry: Registry, sidecar: Sidecar, jobs: JobsPort, beats: JobsPort | None = None
    ) -> None:
        self._sidecar = sidecar
        self._beats = beats or jobs
        self._activities = Activities(registry, jobs)
        self._registry = registry
        self._replica = Replica(
            id=uuid4(), service=service, host=machine_identity(), pid=os.getpid(),
            started=process_identity(os.getpid()), kinds=registry.announced(),
        )  # fmt: skip
        self._tasks: list[asyncio.Task[None]] = []
        self._in_flight: set[asyncio.Future[Any]] = set()
        self._runtime: WorkflowRuntime | None = None
        self._closing = False
        self.joined = asyncio.Event()

    @property
    def process(self) -> Any:
        return self._replica.id

    def dead(self) -> list[str]:
        """Loops that should run and do not."""
        return [task.get_name() for task in self._tasks if task.done() and not self._closing]

    async def start(self) -> None:
        """Join the sidecar's workflow engine, which must be there, and the app, which may come later."""
        self._loop = asyncio.get_running_loop()
        self._runtime = await asyncio.to_thread(self._registered)
        self._tasks = [
            asyncio.create_task(self._beat_forever(), name="job-beat"),
            asyncio.create_task(self._watch_forever(), name="job-watch"),
        ]

    async def close(self) -> None:
        """Stop where the work is: what was in flight is run again by the next replica."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for work in list(self._in_flight):
            work.cancel()
        await self._leave_engine()
        with contextlib.suppress(Exception):  # the app may be gone already: the lease ends by itself
            async with asyncio.timeout(1.0):
                await self._beats.leave(self._replica.id)

    # ---- what the app asks

    async def start_run(self, order: RunOrder) -> None:
        name = workflow_name(order.kind, order.version)
        await self._sidecar.schedule(name, order.instance, order.model_dump(mode="json"))

    async def wake(self, instance: str) -> None:
        await self._sidecar.raise_event(instance, WAKE)

    async def forget(self, instance: str, stale: bool) -> bool:
        return await self._sidecar.forget(instance, terminate=stale)

    # ---- Dapr's side

    def _registered(self) -> WorkflowRuntime:
        self._sidecar.show_token()
        address = self._sidecar.address
        runtime = WorkflowRuntime(
            address.host, str(address.grpc_port), maximum_thread_pool_workers=THREADS, logger_options=QUIET
        )  # fmt: skip
        for definition in self._registry.all():
            runtime.register_workflow(workflow(definition), name=workflow_name(definition.kind, definition.version))
        for name in (STEP, WAIT, UNDO, END):
            runtime.register_activity(self._activity(name), name=name)
        runtime.start()  # type: ignore[no-untyped-call]  # Dapr's
        return runtime

    async def _leave_engine(self) -> None:
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            stopping = asyncio.ensure_future(asyncio.to_thread(runtime.shutdown))
            await asyncio.wait({stopping}, timeout=STOP_SECONDS)

    async def _watch_forever(self) -> None:
        """Join the engine anew when the sidecar has our connection but not our workflows.

        A sidecar may end what the connection of a killed process had registered after the next process's connection has
        registered the same; it then refuses all runs, and nothing else tells.
        """
        unhosted = 0
        while True:
            await asyncio.sleep(LOOK_EVERY)
            unhosted = unhosted + 1 if self._runtime is None or await self._is_unhosted() else 0
            if unhosted < UNHOSTED_LOOKS:
                continue
            log.warning("workflows_not_hosted")
            try:
                await self._leave_engine()
                await self._until_left()
                self._runtime = await asyncio.to_thread(self._registered)
                unhosted = 0
            except Exception as error:
                log.warning("not_joined_anew", error=f"{type(error).__name__}: {error}"[:300])

    async def _is_unhosted(self) -> bool:
        hosting = await self._sidecar.hosting()
        return hosting is not None and hosting.workers > 0 and not hosting.registered

    async def _until_left(self) -> None:
        """A connection that begins before the old one has ended would register nothing."""
        for _ in range(LEAVE_LOOKS):
            hosting = await self._sidecar.hosting()
            if hosting is None or not hosting.workers:
                return
            await asyncio.sleep(LEAVE_EVERY)

    def _activity(self, name: str) -> Callable[[WorkflowActivityContext, dict[str, Any]], Any]:
        async def activity(context: WorkflowActivityContext, data: dict[str, Any]) -> Answer:
            work = asyncio.run_coroutine_threadsafe(self._run(name, data), self._loop)
            return await asyncio.wrap_future(work)

        return activity

    async def _run(self, name: str, data: dict[str, Any]) -> Answer:
        if self._closing:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._in_flight.add(task)
        try:
            return await self._activities.run(name, data)
        finally:
            self._in_flight.discard(task)

    # ---- the beat

    async def _beat_forever(self) -> None:
        clock = asyncio.get_running_loop().time
        last = clock()
        while True:
            try:
                if not self.joined.is_set():
                    await self._beats.join(self._replica)
                    self.joined.set()
                self._activities.stop(await self._beats.beat(self._replica.id, self._activities.working))
                last = clock()
            except Permanent as refused:  # taken for dead
                log.warning("process_unknown", code=refused.code)
                self.joined.clear()
                await asyncio.sleep(AGAIN)
            except Exception as error:  # the app is away
                log.warning("beat_failed", error=f"{type(error).__name__}: {error}"[:300])
                if clock() - last > SILENT:
                    self._activities.stop_all()
                await asyncio.sleep(AGAIN)
            await asyncio.sleep(BEAT_EVERY)

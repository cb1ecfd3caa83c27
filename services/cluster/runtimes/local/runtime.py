"""This machine as a runtime: each worker is a local process under a detached supervisor of ours.

The manager's half. It keeps intents in `store`, starts and stops supervisors through `workers`, and holds no state in
memory: any number of these objects, in any number of processes, may share one directory. Linux and macOS.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from services.cluster.runtimes.base import (
    Capacity,
    ClusterFacts,
    LogLine,
    Observation,
    Progress,
    StaleGeneration,
    WorkerStatus,
    Workload,
)
from services.cluster.runtimes.local import logs, machine, waiting, workers
from services.cluster.runtimes.local.capacity import Limits
from services.cluster.runtimes.local.spec import Supervision
from services.cluster.runtimes.local.store import Intent, Store, WorkerFolder
from shared.jobs.outcomes import Retry
from shared.telemetry.traces import traced

_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
_USABLE_MEMORY = 0.85  # of the machine's, for workers; the rest is for the control plane and its database
_AT_ONCE = 8  # endpoints that are reconciled at the same time
_KNOWN_AFTER = 1.5  # seconds after which whoever sends requests knows that a worker is ready
_KILL_TIME = 0.5  # seconds that are kept for killing when everything must stop


class LocalRuntime:
    """Implements `runtimes.base.Runtime`.

    `directory` holds all state and is made private. `memory_limit` (bytes) and `cpus` bound what workers are promised;
    by default 85 % of the memory and every CPU that this process may use. Memory is promised once, CPUs up to
    `cpu_overcommit` times. Servers get `environment`, and nothing of ours.
    """

    def __init__(
        self,
        directory: Path,
        *,
        memory_limit: int | None = None,
        cpus: float | None = None,
        cpu_overcommit: float = 4.0,
        environment: Mapping[str, str] | None = None,
        supervision: Supervision | None = None,
    ) -> None:
        self._store = Store(directory)
        self._memory_limit = memory_limit
        self._cpus = cpus or machine.cpu_count()
        self._limits = Limits(
            memory_limit or int(machine.memory_total() * _USABLE_MEMORY), max(1, int(self._cpus * cpu_overcommit))
        )
        self._environment = {**_ENVIRONMENT, **(environment or {})}
        self._supervision = supervision or Supervision()
        self._closed = False

    # --- intent

    @traced("machine apply")
    async def apply(self, workload: Workload) -> Observation:
        intent = Intent.of(workload)
        async with self._store.changing(workload.endpoint_id) as lock:
            await asyncio.to_thread(self._promise, intent)
            await asyncio.to_thread(self._store.write_key, workload.endpoint_id, workload.api_key)
            await self._converge(intent, lock, retry=True)
        return await self._observe(workload.endpoint_id)

    @traced("machine scale")
    async def scale(self, endpoint_id: str, replicas: int, generation: int) -> Observation:
        async with self._store.changing(endpoint_id) as lock:
            now = await asyncio.to_thread(self._store.existing, endpoint_id)
            intent = now.model_copy(update={"replicas": replicas, "generation": generation})
            await asyncio.to_thread(self._promise, intent)
            await self._converge(intent, lock)
        return await self._observe(endpoint_id)

    @traced("machine remove")
    async def remove(self, endpoint_id: str, generation: int | None = None) -> None:
        async with self._store.changing(endpoint_id):
            seen = await asyncio.to_thread(self._store.seen_generation, endpoint_id)
            if seen is None:
                return
            if generation is not None and generation < seen:
                raise StaleGeneration(endpoint_id, generation, seen)
            final = seen if generation is None else generation
            intent = await asyncio.to_thread(self._store.intent, endpoint_id)
            if intent is not None:
                removed = intent.model_copy(update={"removed": True, "replicas": 0, "generation": final})
                await asyncio.to_thread(self._store.write_intent, removed)
            await self._finish_removal(endpoint_id, final)

    async def reconcile(self) -> dict[str, Observation]:
        """After a restart, and now and then: adopt what lives, start what is missing, finish what was interrupted.

        Raises Retry when that failed for an endpoint; the others have been looked after all the same.
        """
        await asyncio.to_thread(self._store.prune)
        places = asyncio.Semaphore(_AT_ONCE)

        async def look_after(endpoint_id: str) -> None:
            async with places:
                await self._reconcile(endpoint_id)

        endpoint_ids = await asyncio.to_thread(self._store.endpoint_ids)
        await _all(map(look_after, endpoint_ids))
        return await self.observe()

    async def stop_all(self, timeout: float = 5.0) -> None:
        """Stop every worker within `timeout` seconds, and keep the intents: the next runtime's reconcile brings them back.

        This object starts nothing afterwards.
        """
        self._closed = True
        deadline = time.monotonic() + timeout - _KILL_TIME
        endpoint_ids = await asyncio.to_thread(self._store.endpoint_ids)
        await _all(self._stop_endpoint(endpoint_id, deadline) for endpoint_id in endpoint_ids)

    # --- observation

    async def inspect(self) -> ClusterFacts:
        return await asyncio.to_thread(machine.facts, self._store.directory, self._memory_limit, self._cpus)

    async def capacity(self) -> Capacity:
        return await asyncio.to_thread(lambda: self._limits.usage(self._store.intents()))

    async def check_capacity(self, workload: Workload) -> None:
        """Raises InsufficientCapacity if `apply` would do so now. Promises nothing."""
        intent = Intent.of(workload)
        await asyncio.to_thread(self._check, intent)

    async def observe(self) -> dict[str, Observation]:
        def look() -> dict[str, Observation]:
            return {intent.endpoint_id: workers.observe(self._store, intent) for intent in self._store.intents()}

        return await asyncio.to_thread(look)

    async def observe_one(self, endpoint_id: str) -> Observation | None:
        def look() -> Observation | None:
            intent = self._store.intent(endpoint_id)
            return workers.observe(self._store, intent) if intent is not None else None

        return await asyncio.to_thread(look)

    @traced("machine wait until ready")
    async def wait_ready(
        self, endpoint_id: str, replicas: int, timeout: float, on_progress: Progress | None = None
    ) -> Observation:
        async def look() -> Observation:
            seen = await self._observe(endpoint_id)
            old = await asyncio.to_thread(self._of_old_intent, endpoint_id)
            if old or any(worker.reason == "lost" for worker in seen.workers):
                await self._reconcile(endpoint_id)
            outdated = {"state": "stopping"}  # it serves, but not what is waited for
            workers = [one.model_copy(update=outdated) if one.ordinal in old else one for one in seen.workers]
            return seen.model_copy(update={"workers": workers})

        return await waiting.until_ready(look, replicas, timeout, on_progress)

    async def logs(self, endpoint_id: str, worker: int | None = None, tail: int = 200) -> list[LogLine]:
        def read() -> list[LogLine]:
            self._store.existing(endpoint_id)
            return logs.latest(logs.selected(self._store, endpoint_id, worker), tail)

        return await asyncio.to_thread(read)

    def follow(self, endpoint_id: str, worker: int | None = None, tail: int = 20) -> AsyncIterator[LogLine]:
        return logs.follow(self._store, endpoint_id, worker, tail)

    # --- inside

    def _promise(self, intent: Intent) -> None:
        """Write the intent, if it is not stale and there is room for it."""
        with self._store.promising():
            seen = self._store.seen_generation(intent.endpoint_id)
            if seen is not None and intent.generation < seen:
                raise StaleGeneration(intent.endpoint_id, intent.generation, seen)
            self._check(intent)
            self._store.write_intent(intent)

    def _check(self, intent: Intent) -> None:
        intents = self._store.intents()
        others = [other for other in intents if other.endpoint_id != intent.endpoint_id]
        now = next((other for other in intents if other.endpoint_id == intent.endpoint_id), None)
        self._limits.check(others, now, intent)

    async def _reconcile(self, endpoint_id: str) -> None:
        async with self._store.changing(endpoint_id) as lock:
            intent = await asyncio.to_thread(self._store.intent, endpoint_id)
            if intent is not None and not intent.removed:
                await self._converge(intent, lock)
            elif intent is not None or self._store.is_orphan(endpoint_id):
                await self._finish_removal(endpoint_id, intent.generation if intent else None)

    async def _converge(self, intent: Intent, lock: int, *, retry: bool = False) -> None:
        """Stop what is not wanted (any more, or as it is), then start what is missing. The caller holds the lock.

        Workers that serve an older intent are replaced one at a time, each when all before it are ready: whoever waits
        for them, or the next `reconcile`, goes on. `retry`: workers in a crash loop get a fresh start.
        """
        found = await asyncio.to_thread(self._store.workers, intent.endpoint_id)
        surplus = [worker for worker in found if worker.ordinal >= intent.replicas]
        kept = [worker for worker in found if worker.ordinal < intent.replicas]
        changed = [worker for worker in kept if _differs(worker, intent, retry)]
        serving = [worker for worker in changed if workers.status(worker).state == "ready"]
        replaced = [worker for worker in changed if worker not in serving]
        if not replaced and all(_settled(workers.status(worker)) for worker in kept):
            replaced, serving = serving[:1], serving[1:]
        await _all(workers.stop(worker) for worker in surplus + replaced)
        for worker in surplus:
            await asyncio.to_thread(worker.delete)
        waiting_their_turn = {worker.ordinal for worker in serving}
        wanted = [number for number in range(intent.replicas) if number not in waiting_their_turn]
        await _all(self._ensure(self._store.worker(intent.endpoint_id, number), intent, lock) for number in wanted)

    def _of_old_intent(self, endpoint_id: str) -> set[int]:
        """The workers that have yet to be replaced."""
        intent = self._store.existing(endpoint_id)
        return {worker.ordinal for worker in self._store.workers(endpoint_id) if _differs(worker, intent, False)}

    async def _ensure(self, worker: WorkerFolder, intent: Intent, lock: int) -> None:
        key = self._store.key_file(intent.endpoint_id)
        await asyncio.to_thread(worker.write_spec, intent, key, self._supervision, self._environment)
        if workers.running(worker):
            return
        if self._closed:
            raise Retry("runtime_stopping", "the runtime is stopping")
        await workers.stop(worker)  # a server may have outlived its supervisor
        await _to_its_end(workers.start, worker, lock)

    async def _stop_endpoint(self, endpoint_id: str, deadline: float) -> None:
        async with AsyncExitStack() as stack:
            with suppress(Retry):  # a start takes a moment and is waited for; a slow stop is not
                await stack.enter_async_context(self._store.changing(endpoint_id, timeout=1.0))
            found = await asyncio.to_thread(self._store.workers, endpoint_id)
            await _all(workers.stop(worker, max(0.0, deadline - time.monotonic())) for worker in found)

    async def _finish_removal(self, endpoint_id: str, generation: int | None) -> None:
        for worker in await asyncio.to_thread(self._store.workers, endpoint_id):
            await workers.stop(worker)
        await asyncio.to_thread(self._store.forget, endpoint_id, generation)

    async def _observe(self, endpoint_id: str) -> Observation:
        return await asyncio.to_thread(lambda: workers.observe(self._store, self._store.existing(endpoint_id)))


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Await all of them, whatever becomes of some; then raise what the first failure raised."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def _to_its_end(function: Callable[[WorkerFolder, int], None], worker: WorkerFolder, lock: int) -> None:
    """Run in a thread; when cancelled, wait for the thread first, as it uses a lock that is the caller's to close."""
    task = asyncio.create_task(asyncio.to_thread(function, worker, lock))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _differs(worker: WorkerFolder, intent: Intent, retry: bool) -> bool:
    """Whether a supervisor looks after something else than what is wanted now, or has given up hope."""
    state = worker.state()
    return state is None or state.digest != intent.digest or (retry and state.state == "crash_loop")


def _settled(worker: WorkerStatus) -> bool:
    """Ready, and for long enough that whoever sends requests knows."""
    if worker.state != "ready" or worker.ready_at is None:
        return False
    return (datetime.now(UTC) - worker.ready_at).total_seconds() > _KNOWN_AFTER

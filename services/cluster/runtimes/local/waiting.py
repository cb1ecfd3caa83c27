"""Waits until workers are ready, and knows when that will not happen, with the worker's own reason."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from services.cluster.runtimes.base import Observation, Progress, WorkerStatus
from shared.jobs.outcomes import Permanent

_POLL = 0.05
_HOPELESS = ("out_of_memory", "start_timeout", "cannot_start")  # trying again would end in the same way


async def until_ready(
    look: Callable[[], Awaitable[Observation]], replicas: int, timeout: float, on_progress: Progress | None
) -> Observation:
    """The observation in which the first `replicas` workers are ready.

    Raises Permanent: `worker_crash_loop`, `worker_out_of_memory`, `worker_start_timeout`, `worker_cannot_start`,
    `worker_not_ready` (after `timeout` seconds) or `superseded` (fewer workers are wanted meanwhile).
    """
    deadline = time.monotonic() + timeout
    said = ""
    while True:
        seen = await look()
        if seen.replicas < replicas:
            raise Permanent("superseded", f"{seen.replicas} workers are wanted now, not {replicas}.")
        wanted = [worker for worker in seen.workers if worker.ordinal < replicas]
        ready = sum(worker.state == "ready" for worker in wanted)
        message = f"{ready} of {replicas} workers ready"
        if on_progress is not None and message != said:
            said = message
            on_progress(100.0 * ready / max(1, replicas), message)
        if ready == replicas:
            return seen
        for worker in wanted:
            _refuse_the_hopeless(worker)
        if time.monotonic() > deadline:
            raise _late([worker for worker in wanted if worker.state != "ready"], timeout)
        await asyncio.sleep(_POLL)


def _refuse_the_hopeless(worker: WorkerStatus) -> None:
    if worker.state == "ready":
        return
    if worker.reason in _HOPELESS:
        raise Permanent(f"worker_{worker.reason}", _tell(worker, worker.message or ""))
    if worker.state == "crash_loop":
        raise Permanent("worker_crash_loop", _tell(worker, f"{worker.message} It has failed {worker.restarts} times."))


def _late(workers: list[WorkerStatus], timeout: float) -> Permanent:
    states = ", ".join(f"{worker.id} is {worker.state}" for worker in workers)
    return Permanent("worker_not_ready", f"Not ready after {timeout:g} s: {states}.")


def _tell(worker: WorkerStatus, message: str) -> str:
    lines = "\n".join(worker.last_log)
    return f"Worker {worker.id}: {message}" + (f"\nIts last lines:\n{lines}" if lines else "")

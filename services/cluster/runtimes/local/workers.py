"""Starts and stops supervisors, and tells how their workers are. `runtime` decides which should run.

Every process is known by its identity (pid, start time, boot): nothing else is ever signalled.
"""

import asyncio
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

from pydantic import ValidationError

from services.cluster.runtimes.base import Observation, WorkerStatus
from services.cluster.runtimes.local import processes, shim
from services.cluster.runtimes.local.spec import State
from services.cluster.runtimes.local.store import Intent, Store, WorkerFolder
from shared.jobs.outcomes import Retry

_POLL = 0.02
_AFTER_KILL = 5.0  # seconds until a killed process must be gone
_ERRORS_KEPT = 64 * 1024  # bytes of what failed supervisors said
_LAST_WORD = 1.0  # seconds that a supervisor gets beyond its server's grace


def running(worker: WorkerFolder) -> bool:
    supervisor = worker.supervisor()
    return supervisor is not None and processes.alive(supervisor)


def start(worker: WorkerFolder, lock: int) -> None:
    """Start a detached supervisor, and return when it has written its first state; fine if there is one already.

    The endpoint's lock goes along until then: if we are killed meanwhile, nobody looks at a half-started worker.
    Raises Retry when the system refuses another process.
    """
    errors_file = worker.path / "supervisor.err"
    errors_file.touch(mode=0o600)
    with errors_file.open("ab" if errors_file.stat().st_size < _ERRORS_KEPT else "wb") as errors:
        command = [sys.executable, "-I", "-S", "-B", shim.__file__, str(worker.path), str(lock)]
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, cwd="/", env={}, pass_fds=(lock,),
            start_new_session=True, check=False,
        ).returncode  # fmt: skip
    if code not in (0, shim.ALREADY_RUNNING):
        raise Retry("supervisor_failed", f"the supervisor of worker {worker.id} did not start (exit code {code})")


async def stop(worker: WorkerFolder, timeout: float | None = None) -> None:
    """Stop the supervisor and its server, and return when both are gone.

    They get the grace that the worker was made with, or `timeout` seconds; then they are killed.
    """
    spec = worker.spec()
    supervisor = worker.supervisor()
    grace = timeout if timeout is not None else (spec.stop_grace if spec else 0.0) + _LAST_WORD
    if supervisor is not None and processes.send(supervisor, signal.SIGTERM):
        await _gone(supervisor, grace)
    for identity in (supervisor, worker.server()):
        if identity is not None and processes.send(identity, signal.SIGKILL) and not await _gone(identity, _AFTER_KILL):
            raise Retry("worker_not_stopped", f"a process of worker {worker.id} (pid {identity.pid}) does not end")


async def _gone(identity: processes.Identity, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while processes.alive(identity):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL)
    return True


def observe(store: Store, intent: Intent) -> Observation:
    """How an endpoint is now: the workers that should be there, and those that are on their way out."""
    folders = {worker.ordinal: worker for worker in store.workers(intent.endpoint_id)}
    for ordinal in range(0 if intent.removed else intent.replicas):
        folders.setdefault(ordinal, store.worker(intent.endpoint_id, ordinal))
    return Observation(
        endpoint_id=intent.endpoint_id,
        generation=intent.generation,
        replicas=0 if intent.removed else intent.replicas,
        workers=[status(folders[ordinal]) for ordinal in sorted(folders)],
        observed_at=datetime.now(UTC),
    )


def status(worker: WorkerFolder) -> WorkerStatus:
    try:
        return _status(worker, worker.state() or State())
    except ValidationError:  # a damaged file, or one of a newer version
        return _status(worker, State())


def _status(worker: WorkerFolder, state: State) -> WorkerStatus:
    spec = worker.spec()
    server = processes.Identity.read(state.server)
    alive = running(worker)
    now, reason, message = state.state, state.reason, state.message
    if not alive:
        server = None
        if now != "exited":
            now, reason, message = "exited", "lost", "Its supervisor is gone."
    values = {
        "id": worker.id,
        "ordinal": worker.ordinal,
        "generation": spec.generation if spec else 0,
        "state": now,
        "pid": server.pid if server else None,
        "port": state.port if alive else None,
        "url": f"http://127.0.0.1:{state.port}" if alive and state.port else None,
        "memory_bytes": state.memory_bytes if alive else None,
        "started_at": _moment(state.started_at),
        "ready_at": _moment(state.ready_at),
        "restarts": state.restarts,
        "reason": reason,
        "message": message,
        "exit_code": state.exit_code,
        "last_log": state.last_log,
    }
    return WorkerStatus.model_validate(values)


def _moment(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None

"""The runtime's folder: what should run (intents), what was told to each supervisor (specs), what each says (states).

    lock                        held while promises of memory and CPU are weighed
    locks/NN                    held while one endpoint is changed; endpoints share a few of them
    removed/<endpoint>          the last generation of an endpoint that is gone, so that a late caller is refused
    endpoints/<endpoint>/       intent.json, api_key, workers/<ordinal>/{spec,state}.json, supervisor.lock, worker.log

Everything is readable by the owner only. `runtime` is the only one who writes here, besides each supervisor in its folder.
"""

import asyncio
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from services.cluster.runtimes.base import EndpointId, Process, UnknownEndpoint, Workload
from services.cluster.runtimes.local.files import read_json, write_json, write_private
from services.cluster.runtimes.local.processes import Identity
from services.cluster.runtimes.local.spec import LOCK, SPEC, Spec, State, Supervision
from shared.jobs.outcomes import Retry

_LOCKS = 64
_REMEMBERED = 30 * 24 * 3600  # seconds that a removed endpoint's generation is kept
_ENDPOINT_ID: TypeAdapter[str] = TypeAdapter(EndpointId)


class Intent(BaseModel):
    """What should run for one endpoint, without its API key. `removed`: it is on its way out."""

    endpoint_id: str
    generation: int
    replicas: int
    process: Process
    memory_bytes: int
    threads: int
    digest: str  # of all that a worker is made from
    removed: bool = False

    @classmethod
    def of(cls, workload: Workload) -> "Intent":
        key = workload.api_key.get_secret_value() if workload.api_key else ""
        parts = workload.model_dump_json(include={"process", "memory_bytes", "threads"})
        digest = hashlib.sha256(f"{parts}\n{hashlib.sha256(key.encode()).hexdigest()}".encode()).hexdigest()
        return cls(digest=digest, **workload.model_dump(exclude={"api_key"}))


class WorkerFolder:
    """One worker's folder, which may not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ordinal = int(path.name)
        self.endpoint_id = path.parent.parent.name

    @property
    def id(self) -> str:
        return f"{self.endpoint_id}-{self.ordinal}"

    def spec(self) -> Spec | None:
        return Spec.read(self.path)

    def state(self) -> State | None:
        return State.read(self.path)

    def supervisor(self) -> Identity | None:
        """The latest supervisor, alive or not."""
        return Identity.read((read_json(self.path / LOCK) or {}).get("supervisor"))

    def server(self) -> Identity | None:
        state = self.state()
        return Identity.read(state.server) if state else None

    def write_spec(self, intent: Intent, key_file: Path | None, supervision: Supervision, base: dict[str, str]) -> None:
        """Tell the supervisor; nothing is written when that is what it was told."""
        process, health = intent.process, intent.process.health
        spec = Spec(
            id=self.id,
            ordinal=self.ordinal,
            generation=intent.generation,
            digest=intent.digest,
            argv=process.argv,
            environment={**base, "HOME": "{directory}", "OMP_NUM_THREADS": str(intent.threads), **process.environment},
            memory_bytes=intent.memory_bytes,
            health_path=health.path,
            health_interval=health.interval,
            health_timeout=health.timeout,
            health_failures=health.failures,
            start_timeout=health.start_timeout,
            stop_grace=process.stop_grace,
            api_key_file=str(key_file) if key_file else None,
            supervision=supervision,
        )
        if spec != self.spec():
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
            write_json(self.path / SPEC, spec.as_json(), durable=True)

    def delete(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Store:
    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        for folder in (self.directory, *(self.directory / name for name in ("locks", "removed", "endpoints"))):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)

    # --- locks

    @asynccontextmanager
    async def changing(self, endpoint_id: str, timeout: float = 120.0) -> AsyncIterator[int]:
        """Only one caller at a time, of all processes, changes an endpoint. Raises Retry when it takes too long.

        The value is the lock's descriptor: a process that inherits it keeps the lock.
        """
        number = hashlib.sha256(endpoint_id.encode()).digest()[0] % _LOCKS
        descriptor = os.open(self.directory / "locks" / f"{number:02d}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + timeout
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise Retry("runtime_busy", f"endpoint {endpoint_id} is being changed by someone else")
                await asyncio.sleep(0.02)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def promising(self) -> Iterator[None]:
        """Held only while promises are added up and one is written; it blocks, so call it in a thread."""
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # --- intents

    def endpoint_ids(self) -> list[str]:
        """Every endpoint that has a folder, with an intent or not."""
        found = (self.directory / "endpoints").iterdir()
        return sorted(path.name for path in found if path.is_dir() and not path.name.startswith("."))

    def intent(self, endpoint_id: str) -> Intent | None:
        value = read_json(self._endpoint(endpoint_id) / "intent.json")
        if value is None:
            return None
        try:
            return Intent.model_validate(value)
        except ValidationError:
            return None

    def is_orphan(self, endpoint_id: str) -> bool:
        """Whether a folder has no intent at all; one that cannot be read may be a newer version's."""
        return not (self._endpoint(endpoint_id) / "intent.json").exists()

    def intents(self) -> list[Intent]:
        return [intent for name in self.endpoint_ids() if (intent := self.intent(name)) is not None]

    def existing(self, endpoint_id: str) -> Intent:
        intent = self.intent(endpoint_id)
        if intent is None or intent.removed:
            raise UnknownEndpoint(endpoint_id)
        return intent

    def seen_generation(self, endpoint_id: str) -> int | None:
        """The newest generation that was ever applied or removed; None if the endpoint was never here."""
        intent = self.intent(endpoint_id)
        if intent is not None:
            return intent.generation
        removed = read_json(self.directory / "removed" / endpoint_id)
        return int(removed["generation"]) if removed else None

    def write_intent(self, intent: Intent) -> None:
        folder = self._endpoint(intent.endpoint_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        write_json(folder / "intent.json", intent.model_dump(mode="json"), durable=True)

    def write_key(self, endpoint_id: str, api_key: SecretStr | None) -> None:
        folder = self._endpoint(endpoint_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        if api_key is None:
            (folder / "api_key").unlink(missing_ok=True)
        else:
            write_private(folder / "api_key", api_key.get_secret_value().encode(), durable=True)

    def key_file(self, endpoint_id: str) -> Path | None:
        path = self._endpoint(endpoint_id) / "api_key"
        return path if path.exists() else None

    def forget(self, endpoint_id: str, generation: int | None) -> None:
        """Delete all of a removed endpoint but its generation."""
        if generation is not None:
            write_json(self.directory / "removed" / endpoint_id, {"generation": generation}, durable=True)
        shutil.rmtree(self._endpoint(endpoint_id), ignore_errors=True)

    def prune(self) -> None:
        for path in (self.directory / "removed").iterdir():
            if path.stat().st_mtime < time.time() - _REMEMBERED:
                path.unlink(missing_ok=True)

    # --- workers

    def worker(self, endpoint_id: str, ordinal: int) -> WorkerFolder:
        return WorkerFolder(self._endpoint(endpoint_id) / "workers" / str(ordinal))

    def workers(self, endpoint_id: str) -> list[WorkerFolder]:
        """Those that have a folder, by ordinal."""
        try:
            names = [path for path in (self._endpoint(endpoint_id) / "workers").iterdir() if path.name.isdigit()]
        except FileNotFoundError:
            return []
        return sorted((WorkerFolder(path) for path in names), key=lambda worker: worker.ordinal)

    def _endpoint(self, endpoint_id: str) -> Path:
        try:
            return self.directory / "endpoints" / _ENDPOINT_ID.validate_python(endpoint_id)
        except ValidationError:
            raise UnknownEndpoint(endpoint_id[:80]) from None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""A runtime in a directory of its own, with supervision in fast motion; afterwards nothing of it may be left running."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.cluster.runtimes.base import Health, Process, Workload
from services.cluster.runtimes.local.runtime import LocalRuntime
from services.cluster.runtimes.local.spec import Supervision

SERVER = Path(__file__).with_name("server.py")
FAST = Supervision(backoff=0.05, healthy_after=60, crash_loop_delay=0.4, memory_interval=0.05, log_max_bytes=64 * 1024)
MIB = 1024 * 1024

NewRuntime = Callable[..., LocalRuntime]


def workload(*arguments: str, endpoint: str = "e1", generation: int = 1, replicas: int = 1, **more: Any) -> Workload:
    process = {
        "argv": [sys.executable, "-I", "-S", str(SERVER), "--port={port}", *arguments],
        "health": Health(interval=0.1, timeout=0.5, failures=2, start_timeout=30),
        "stop_grace": 1.0,
        **more.pop("process", {}),
    }
    values = {
        "memory_bytes": 200 * MIB,
        "endpoint_id": endpoint,
        "generation": generation,
        "replicas": replicas,
        **more,
    }
    return Workload(process=Process(**process), **values)


def processes_of(directory: Path) -> list[int]:
    """Living processes that work in the directory or name it: supervisors and servers."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            place = str((folder / "cwd").readlink())
        except OSError:
            continue
        if f"{directory}/endpoints" in command or place.startswith(f"{directory}/endpoints"):
            found.append(int(folder.name))
    return found


async def eventually(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    """What the condition returns once it is true; awaits it when it must be awaited."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


async def get(url: str | None, path: str = "/") -> Any:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"{url}{path}")).raise_for_status().json()


async def post(url: str | None, path: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        (await client.post(f"{url}{path}")).raise_for_status()


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "machine"
    yield path
    runtime = LocalRuntime(path)
    for endpoint_id in list(await runtime.observe()):
        await runtime.remove(endpoint_id)
    await runtime.reconcile()
    assert processes_of(path) == []
    assert list((path / "endpoints").iterdir()) == []


@pytest.fixture
def new_runtime(directory: Path) -> NewRuntime:
    def make(**options: Any) -> LocalRuntime:
        return LocalRuntime(directory, **{"supervision": FAST, **options})

    return make


@pytest.fixture
def runtime(new_runtime: NewRuntime) -> LocalRuntime:
    return new_runtime()

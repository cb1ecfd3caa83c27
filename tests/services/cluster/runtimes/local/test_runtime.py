"""The life of an endpoint: apply, scale, observe, logs, remove."""

import asyncio
import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from services.cluster.runtimes.base import InsufficientCapacity, StaleGeneration, UnknownEndpoint
from services.cluster.runtimes.local.runtime import LocalRuntime
from services.cluster.runtimes.local.spec import Supervision
from shared.jobs.outcomes import Permanent
from tests.services.cluster.runtimes.local.conftest import (
    MIB,
    SERVER,
    NewRuntime,
    eventually,
    get,
    post,
    processes_of,
    workload,
)


async def test_workers_become_ready_and_answer_under_their_own_addresses(runtime: LocalRuntime) -> None:
    said: list[tuple[float | None, str]] = []
    await runtime.apply(workload(replicas=2))
    seen = await runtime.wait_ready("e1", 2, 20, lambda percent, message: said.append((percent, message)))

    assert [worker.id for worker in seen.workers] == ["e1-0", "e1-1"]
    assert len({worker.port for worker in seen.workers}) == 2
    assert {(await get(worker.url))["pid"] for worker in seen.workers} == {worker.pid for worker in seen.workers}
    assert all(worker.memory_bytes and worker.memory_bytes > MIB for worker in seen.workers)
    assert all(
        worker.started_at and worker.ready_at and worker.started_at <= worker.ready_at for worker in seen.workers
    )
    assert said[-1] == (100.0, "2 of 2 workers ready")


async def test_the_supervisor_is_small(runtime: LocalRuntime, directory: Path) -> None:
    await runtime.apply(workload())
    seen = await runtime.wait_ready("e1", 1, 20)
    (supervisor,) = [pid for pid in processes_of(directory) if pid != seen.workers[0].pid]
    own = next(
        line for line in Path(f"/proc/{supervisor}/status").read_text().splitlines() if line.startswith("RssAnon")
    )
    assert int(own.split()[1]) < 10 * 1024
    assert os.getsid(supervisor) != os.getsid(0)


async def test_a_server_gets_a_clean_environment_in_its_own_folder(
    new_runtime: NewRuntime, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPWAY_SECRET", "not for servers")
    runtime = new_runtime(environment={"EXTRA": "yes"})
    await runtime.apply(workload(threads=3, process={"environment": {"PLACE": "{directory}/x"}}))
    seen = await runtime.wait_ready("e1", 1, 20)
    answer = await get(seen.workers[0].url)
    folder = str(directory / "endpoints/e1/workers/0")
    assert answer["cwd"] == folder
    assert (
        answer["environment"].items()
        >= {"HOME": folder, "PLACE": f"{folder}/x", "EXTRA": "yes", "OMP_NUM_THREADS": "3"}.items()
    )
    assert set(answer["environment"]) <= {"HOME", "PLACE", "EXTRA", "OMP_NUM_THREADS", "PATH", "LANG", "LC_CTYPE"}


async def test_applying_the_same_again_changes_nothing(runtime: LocalRuntime) -> None:
    await runtime.apply(workload(replicas=2))
    before = await runtime.wait_ready("e1", 2, 20)
    after = await runtime.apply(workload(replicas=2, generation=2))
    assert [worker.pid for worker in after.workers] == [worker.pid for worker in before.workers]
    assert after.generation == 2
    assert {worker.generation for worker in after.workers} == {2}


async def test_a_changed_process_replaces_the_workers(runtime: LocalRuntime) -> None:
    await runtime.apply(workload())
    before = (await runtime.wait_ready("e1", 1, 20)).workers[0]
    await runtime.apply(workload("--after=0.01", generation=2))
    after = (await runtime.wait_ready("e1", 1, 20)).workers[0]
    assert after.pid != before.pid
    assert "--after=0.01" in (await get(after.url))["argv"]


async def test_scaling_touches_no_worker_that_stays(runtime: LocalRuntime, directory: Path) -> None:
    await runtime.apply(workload())
    first = (await runtime.wait_ready("e1", 1, 20)).workers[0]
    await runtime.scale("e1", 3, 2)
    three = await runtime.wait_ready("e1", 3, 20)
    assert three.workers[0].pid == first.pid
    one = await runtime.scale("e1", 1, 3)
    assert [(worker.ordinal, worker.pid, worker.state) for worker in one.workers] == [(0, first.pid, "ready")]
    assert len(processes_of(directory)) == 2
    nothing = await runtime.scale("e1", 0, 4)
    assert nothing.workers == []
    assert processes_of(directory) == []


async def test_a_caller_with_an_older_intent_is_refused(runtime: LocalRuntime) -> None:
    await runtime.apply(workload(generation=5))
    for late in (runtime.apply(workload(generation=4)), runtime.scale("e1", 2, 4), runtime.remove("e1", 4)):
        with pytest.raises(StaleGeneration):
            await late
    assert (await runtime.observe())["e1"].generation == 5
    await runtime.remove("e1", 6)
    with pytest.raises(StaleGeneration):
        await runtime.apply(workload(generation=5))
    assert await runtime.observe() == {}


async def test_remove_leaves_nothing_and_may_be_repeated(runtime: LocalRuntime, directory: Path) -> None:
    await runtime.apply(workload(replicas=2))
    await runtime.wait_ready("e1", 2, 20)
    await runtime.remove("e1")
    assert processes_of(directory) == []
    assert not (directory / "endpoints" / "e1").exists()
    await runtime.remove("e1")
    await runtime.remove("never-was-here")
    assert await runtime.observe() == {}


async def test_the_same_generation_may_come_back_after_an_undo(runtime: LocalRuntime) -> None:
    await runtime.apply(workload(generation=3))
    await runtime.remove("e1")
    await runtime.apply(workload(generation=3))
    assert len((await runtime.wait_ready("e1", 1, 20)).ready) == 1


async def test_applying_again_gives_a_crash_loop_a_fresh_start(new_runtime: NewRuntime, tmp_path: Path) -> None:
    runtime = new_runtime(supervision=Supervision(backoff=0.02, crash_loop_delay=3600))
    flag = tmp_path / "mended"
    script = f"[ -e {flag} ] || exit 4; exec {sys.executable} -I -S {SERVER} --port={{port}}"
    await runtime.apply(workload(process={"argv": ["/bin/sh", "-c", script]}))
    with pytest.raises(Permanent, match="exit code 4"):
        await runtime.wait_ready("e1", 1, 20)
    flag.touch()
    await runtime.apply(workload(process={"argv": ["/bin/sh", "-c", script]}))
    assert len((await runtime.wait_ready("e1", 1, 20)).ready) == 1


@pytest.mark.parametrize("name", ["../e1", "", "a/b", "E1", "x" * 80, ".", "e1\0"])
async def test_names_that_are_no_endpoint_are_refused(runtime: LocalRuntime, name: str) -> None:
    with pytest.raises(UnknownEndpoint):
        await runtime.logs(name)
    with pytest.raises(UnknownEndpoint):
        await runtime.scale(name, 1, 1)
    with pytest.raises(UnknownEndpoint):
        await runtime.remove(name)
    with pytest.raises(ValueError, match="endpoint_id"):
        workload(endpoint=name)


async def test_unknown_endpoints_are_named_as_such(runtime: LocalRuntime) -> None:
    for call in (
        runtime.scale("e9", 1, 1),
        runtime.logs("e9"),
        runtime.wait_ready("e9", 1, 1),
        anext(runtime.follow("e9")),
    ):
        with pytest.raises(UnknownEndpoint, match="e9"):
            await call


async def test_memory_is_promised_once(new_runtime: NewRuntime, directory: Path) -> None:
    runtime = new_runtime(memory_limit=500 * MIB, cpus=2, cpu_overcommit=2)
    await runtime.apply(workload(replicas=2))
    with pytest.raises(InsufficientCapacity, match=r"100 MiB of 500 MiB") as refusal:
        await runtime.apply(workload(endpoint="e2"))
    assert refusal.value.lacking == {"memory": 100 * MIB}
    with pytest.raises(InsufficientCapacity):
        await runtime.scale("e1", 3, 2)
    seen = await runtime.observe()
    assert list(seen) == ["e1"]
    assert (seen["e1"].replicas, seen["e1"].generation) == (2, 1)
    capacity = await runtime.capacity()
    assert (capacity.memory_promised_bytes, capacity.threads_promised, capacity.workers) == (400 * MIB, 2, 2)
    await runtime.scale("e1", 1, 3)
    await runtime.check_capacity(workload(endpoint="e2"))


async def test_cpus_are_promised_up_to_the_overcommit(new_runtime: NewRuntime) -> None:
    runtime = new_runtime(cpus=2, cpu_overcommit=2)
    with pytest.raises(InsufficientCapacity, match="5 threads") as refusal:
        await runtime.check_capacity(workload(threads=5))
    assert refusal.value.lacking == {"cpu": 1}


async def test_more_memory_than_the_machine_has_free_is_refused(new_runtime: NewRuntime) -> None:
    runtime = new_runtime(memory_limit=1 << 60)
    with pytest.raises(InsufficientCapacity, match="free") as refusal:
        await runtime.check_capacity(workload(memory_bytes=1 << 59))
    assert refusal.value.lacking["memory"] > 0


async def test_simultaneous_promises_do_not_exceed_the_memory(new_runtime: NewRuntime) -> None:
    runtime = new_runtime(memory_limit=450 * MIB)
    calls = (runtime.apply(workload(endpoint=f"e{number}")) for number in range(5))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, InsufficientCapacity) for result in results) == 3
    assert len(await runtime.observe()) == 2


async def test_everything_is_private_and_the_key_is_only_in_its_file(runtime: LocalRuntime, directory: Path) -> None:
    key = "sk-very-secret-0123456789"
    await runtime.apply(workload("--tell-key={api_key_file}", api_key=key))
    seen = await runtime.wait_ready("e1", 1, 20)
    assert seen.workers[0].pid is not None
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*") if path.is_dir()} == {0o700}
    assert [path.name for path in files if key in path.read_text(errors="replace")] == ["api_key"]
    assert key not in Path(f"/proc/{seen.workers[0].pid}/cmdline").read_text()
    lines = [line.text for line in await runtime.logs("e1")]
    assert "the key is [secret]" in lines


async def test_a_new_key_replaces_the_workers(runtime: LocalRuntime) -> None:
    await runtime.apply(workload(api_key="one"))
    before = (await runtime.wait_ready("e1", 1, 20)).workers[0].pid
    await runtime.apply(workload(api_key="two", generation=2))
    assert (await runtime.wait_ready("e1", 1, 20)).workers[0].pid != before


async def test_logs_of_all_workers_are_in_the_order_of_time(runtime: LocalRuntime) -> None:
    await runtime.apply(workload(replicas=2))
    seen = await runtime.wait_ready("e1", 2, 20)
    for worker in seen.workers:
        await post(worker.url, "/say/3")

    async def complete() -> bool:
        return sum(line.text.startswith("line") for line in await runtime.logs("e1")) == 6

    await eventually(complete)
    lines = await runtime.logs("e1")
    assert [line.time for line in lines] == sorted(line.time for line in lines)
    assert {line.worker for line in lines} == {"e1-0", "e1-1"}
    assert {line.worker for line in await runtime.logs("e1", worker=1)} == {"e1-1"}
    assert [line.text[:6] for line in await runtime.logs("e1", worker=1, tail=2)] == ["line 1", "line 2"]
    assert await runtime.logs("e1", tail=0) == []


async def test_a_log_is_cut_by_size_and_followers_miss_nothing(runtime: LocalRuntime, directory: Path) -> None:
    await runtime.apply(workload())
    seen = await runtime.wait_ready("e1", 1, 20)
    heard: list[str] = []

    async def listen() -> None:
        async for line in runtime.follow("e1", tail=5):
            heard.append(line.text)

    listener = asyncio.create_task(listen())
    await eventually(lambda: "[supervisor] ready" in heard)
    for _ in range(4):
        expected = len(heard) + 200

        def all_heard(expected: int = expected) -> bool:
            return len(heard) >= expected

        await post(seen.workers[0].url, "/say/200")
        await eventually(all_heard)
    spoken = [text for text in heard if text.startswith("line")]
    assert [text.split()[1] for text in spoken] == [str(number) for number in range(200)] * 4
    logs = list((directory / "endpoints/e1/workers/0").glob("worker.log*"))
    assert sorted(path.name for path in logs) == ["worker.log", "worker.log.1"]
    assert all(path.stat().st_size < 80 * 1024 for path in logs)
    assert len(await runtime.logs("e1", tail=700)) == 700

    await runtime.remove("e1")
    await asyncio.wait_for(listener, 5)


async def test_inspecting_tells_of_this_machine(runtime: LocalRuntime) -> None:
    (node,) = (await runtime.inspect()).nodes
    assert node.cpus >= 1
    assert 0 < node.memory_available_bytes <= node.memory_bytes
    assert node.disk_available_bytes
    assert node.os == "linux"


async def test_observing_is_cheap(runtime: LocalRuntime) -> None:
    for number in range(5):
        await runtime.apply(workload(endpoint=f"e{number}", process={"argv": ["/bin/sleep", "60"]}))
    start = time.monotonic()
    for _ in range(10):
        seen = await runtime.observe()
    assert (time.monotonic() - start) / 10 < 0.1
    assert len(seen) == 5


async def test_files_of_a_version_that_knew_other_fields_are_written_anew(
    runtime: LocalRuntime, directory: Path
) -> None:
    await runtime.apply(workload())
    await runtime.wait_ready("e1", 1, 20)
    path = directory / "endpoints/e1/workers/0/spec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "blue"}))
    seen = await runtime.reconcile()
    assert seen["e1"].workers[0].state == "ready"
    assert "colour" not in path.read_text()

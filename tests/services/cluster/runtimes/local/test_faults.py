"""What goes wrong on a machine: crashes, hogs, kills, stale pids, racing managers, half-done work."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.cluster.runtimes.base import WorkerStatus
from services.cluster.runtimes.local import processes
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

MANAGER = """
import asyncio, sys
from pathlib import Path
from typing import Any
from services.cluster.runtimes.base import Workload
from services.cluster.runtimes.local.runtime import LocalRuntime

async def main():
    runtime = LocalRuntime(Path(sys.argv[1]))
    workload = Workload.model_validate_json(sys.argv[2])
    print("go", flush=True)
    sys.stdin.readline()
    await runtime.apply(workload)
    print("applied", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


def manager(directory: Path, **more: Any) -> subprocess.Popen[str]:
    """Another process with a runtime on the same directory; it applies when it reads a line, and ends at the next."""
    command = [sys.executable, "-c", MANAGER, str(directory), workload(**more).model_dump_json()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    return process


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not ours to stop."""
    process = subprocess.Popen(["/bin/sleep", "60"])
    yield process
    process.kill()
    process.wait()


async def one(runtime: LocalRuntime) -> WorkerStatus:
    return (await runtime.observe())["e1"].workers[0]


async def ready(runtime: LocalRuntime) -> WorkerStatus:
    return (await runtime.wait_ready("e1", 1, 20)).workers[0]


def supervisor(directory: Path, ordinal: int = 0) -> processes.Identity:
    content = json.loads((directory / f"endpoints/e1/workers/{ordinal}/supervisor.lock").read_text())
    identity = processes.Identity.read(content["supervisor"])
    assert identity is not None
    return identity


# --- the server fails


async def test_a_crash_loop_is_reported_with_exit_code_and_last_lines(runtime: LocalRuntime) -> None:
    await runtime.apply(workload("--exit=3"))
    with pytest.raises(Permanent, match="exit code 3") as failure:
        await ready(runtime)
    assert failure.value.code == "worker_crash_loop"
    assert "the model is broken: no such tensor" in failure.value.message
    worker = await one(runtime)
    assert (worker.state, worker.reason, worker.exit_code) == ("crash_loop", "exited", 3)
    assert worker.last_log == ["the model is broken: no such tensor"]

    async def tried_again() -> bool:
        return (await one(runtime)).restarts > worker.restarts

    await eventually(tried_again)


async def test_a_crash_loop_ends_when_the_fault_is_gone(runtime: LocalRuntime, tmp_path: Path) -> None:
    flag = tmp_path / "mended"
    script = f"[ -e {flag} ] || exit 4; exec {sys.executable} -I -S {SERVER} --port={{port}}"
    await runtime.apply(workload(process={"argv": ["/bin/sh", "-c", script]}))
    with pytest.raises(Permanent, match="exit code 4"):
        await ready(runtime)
    flag.touch()

    async def mended() -> bool:
        return (await one(runtime)).state == "ready"

    await eventually(mended)


async def test_a_program_that_cannot_be_started_says_so_at_once(runtime: LocalRuntime) -> None:
    await runtime.apply(workload(process={"argv": ["/no/such/program"]}))
    with pytest.raises(Permanent, match="cannot start /no/such/program: No such file") as failure:
        await ready(runtime)
    assert failure.value.code == "worker_cannot_start"


async def test_a_server_over_its_memory_limit_is_stopped_and_the_limit_is_named(runtime: LocalRuntime) -> None:
    await runtime.apply(workload("--hog=120", "--after=5", memory_bytes=100 * MIB))
    with pytest.raises(Permanent, match="its limit is 100 MiB") as failure:
        await ready(runtime)
    assert failure.value.code == "worker_out_of_memory"


async def test_a_server_that_grows_over_its_limit_is_restarted(runtime: LocalRuntime) -> None:
    await runtime.apply(workload(memory_bytes=100 * MIB))
    before = await ready(runtime)
    await post(before.url, "/hog/150")

    async def restarted() -> bool:
        worker = await one(runtime)
        return worker.state == "ready" and worker.pid != before.pid

    await eventually(restarted)
    after = await one(runtime)
    assert (after.reason, after.restarts, after.port) == ("out_of_memory", 1, before.port)


async def test_a_slow_start_is_waited_for_and_its_limit_is_kept(runtime: LocalRuntime) -> None:
    await runtime.apply(workload("--after=0.6"))
    assert (await one(runtime)).state == "starting"
    with pytest.raises(Permanent, match=r"Not ready after 0\.2 s: e1-0 is starting") as late:
        await runtime.wait_ready("e1", 1, 0.2)
    assert late.value.code == "worker_not_ready"
    assert (await ready(runtime)).restarts == 0


async def test_a_server_that_never_becomes_healthy_is_given_up(runtime: LocalRuntime) -> None:
    slow = workload("--after=60", process={"health": {"start_timeout": 0.3, "interval": 0.1}})
    await runtime.apply(slow)
    with pytest.raises(Permanent, match=r"not healthy 0\.3 s after its start") as failure:
        await ready(runtime)
    assert failure.value.code == "worker_start_timeout"


async def test_an_unhealthy_server_is_shown_then_restarted(runtime: LocalRuntime) -> None:
    await runtime.apply(workload())
    before = await ready(runtime)
    await post(before.url, "/sick")
    states = set()

    async def healed() -> bool:
        worker = await one(runtime)
        states.add(worker.state)
        return worker.state == "ready" and worker.pid != before.pid

    await eventually(healed)
    assert "unhealthy" in states
    assert (await one(runtime)).reason == "unhealthy"


async def test_a_frozen_server_is_restarted(runtime: LocalRuntime) -> None:
    await runtime.apply(
        workload(process={"health": {"interval": 0.1, "timeout": 0.2, "failures": 1}, "stop_grace": 0.2})
    )
    before = await ready(runtime)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGSTOP)

    async def restarted() -> bool:
        worker = await one(runtime)
        return worker.state == "ready" and worker.pid != before.pid

    await eventually(restarted)


async def test_a_killed_server_is_restarted_at_the_same_port(runtime: LocalRuntime) -> None:
    await runtime.apply(workload())
    before = await ready(runtime)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)

    async def restarted() -> bool:
        worker = await one(runtime)
        return worker.state == "ready" and worker.pid != before.pid

    await eventually(restarted)
    after = await one(runtime)
    assert (after.reason, after.exit_code, after.restarts, after.port) == ("signal", -9, 1, before.port)
    assert after.message is not None
    assert "SIGKILL" in after.message


async def test_failures_are_forgotten_after_healthy_times(new_runtime: NewRuntime) -> None:
    runtime = new_runtime(
        supervision=Supervision(backoff=0.02, healthy_after=0.1, crash_loop_after=2, memory_interval=0.05)
    )
    await runtime.apply(workload())
    for count in (1, 2, 3):
        await asyncio.sleep(0.3)  # longer than healthy_after: what is tested is time itself
        await post((await ready(runtime)).url, "/exit/1")

        async def back(count: int = count) -> bool:
            worker = await one(runtime)
            assert worker.state != "crash_loop"
            return worker.restarts == count and worker.state == "ready"

        await eventually(back)


async def test_helpers_of_a_server_end_with_it(runtime: LocalRuntime, directory: Path) -> None:
    script = f"/bin/sleep 300 & exec {sys.executable} -I -S {SERVER} --port={{port}}"
    await runtime.apply(workload(process={"argv": ["/bin/sh", "-c", script]}))
    before = await ready(runtime)
    assert len(processes_of(directory)) == 3
    await post(before.url, "/exit/0")

    async def restarted() -> bool:
        worker = await one(runtime)
        return worker.state == "ready" and worker.restarts == 1

    await eventually(restarted)
    assert len(processes_of(directory)) == 3


async def test_a_server_that_ignores_the_request_to_stop_is_killed(runtime: LocalRuntime, directory: Path) -> None:
    await runtime.apply(workload("--stubborn", process={"stop_grace": 0.3}))
    await ready(runtime)
    start = time.monotonic()
    await runtime.remove("e1")
    assert 0.3 <= time.monotonic() - start < 3
    assert processes_of(directory) == []


async def test_a_taken_port_is_reported_by_the_servers_own_words(runtime: LocalRuntime) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        await runtime.apply(workload(process={"argv": [sys.executable, "-I", "-S", str(SERVER), f"--port={port}"]}))
        with pytest.raises(Permanent, match="Address already in use") as failure:
            await ready(runtime)
    assert failure.value.code == "worker_crash_loop"


async def test_nobody_else_gets_a_workers_port_while_it_restarts(runtime: LocalRuntime) -> None:
    await runtime.apply(workload("--after=2"))
    worker = await one(runtime)
    assert worker.state == "starting"
    assert worker.port is not None
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", worker.port))


# --- someone kills


async def test_a_killed_supervisor_takes_its_server_along_and_is_started_again(
    runtime: LocalRuntime, directory: Path
) -> None:
    await runtime.apply(workload())
    before = await ready(runtime)
    os.kill(supervisor(directory).pid, signal.SIGKILL)
    await eventually(lambda: not processes_of(directory))
    lost = await one(runtime)
    assert (lost.state, lost.reason, lost.url) == ("exited", "lost", None)
    await runtime.reconcile()
    after = await ready(runtime)
    assert after.pid != before.pid
    assert (await get(after.url))["pid"] == after.pid


async def test_waiting_brings_a_lost_worker_back(runtime: LocalRuntime, directory: Path) -> None:
    await runtime.apply(workload("--after=0.3"))
    os.kill(supervisor(directory).pid, signal.SIGKILL)
    assert (await ready(runtime)).state == "ready"


async def test_workers_outlive_a_killed_manager_and_are_adopted(new_runtime: NewRuntime, directory: Path) -> None:
    process = await asyncio.to_thread(manager, directory, replicas=2)
    say(process)
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "applied\n"
    before = await new_runtime().wait_ready("e1", 2, 20)
    process.kill()
    process.wait()

    runtime = new_runtime()
    after = (await runtime.reconcile())["e1"]
    assert [(worker.pid, worker.state) for worker in after.workers] == [(w.pid, "ready") for w in before.workers]
    assert {(await get(worker.url))["pid"] for worker in after.workers} == {worker.pid for worker in before.workers}
    again = await runtime.apply(workload(replicas=2, generation=2))
    assert [worker.pid for worker in again.workers] == [worker.pid for worker in before.workers]


async def test_a_manager_killed_at_any_moment_of_apply_leaves_nothing_doubled(
    new_runtime: NewRuntime, directory: Path
) -> None:
    for generation, delay in enumerate((0.005, 0.02, 0.04, 0.07), start=1):
        process = await asyncio.to_thread(manager, directory, replicas=3, generation=generation)
        say(process)
        await asyncio.sleep(delay)  # the moment of the kill
        process.kill()
        process.wait()
        runtime = new_runtime()
        await runtime.reconcile()
        await runtime.apply(workload(replicas=3, generation=generation))
        await runtime.wait_ready("e1", 3, 20)
        assert len(processes_of(directory)) == 6
        await runtime.remove("e1")
        assert processes_of(directory) == []


async def test_a_cancelled_apply_is_finished_by_reconcile(runtime: LocalRuntime, directory: Path) -> None:
    for generation, delay in enumerate((0.0, 0.01, 0.03, 0.06), start=1):
        applying = asyncio.create_task(runtime.apply(workload(replicas=2, generation=generation)))
        await asyncio.sleep(delay)  # the moment of the cancellation
        applying.cancel()
        await asyncio.wait([applying])
        await runtime.reconcile()
        assert len(processes_of(directory)) <= 4
        await runtime.apply(workload(replicas=2, generation=generation))
        await runtime.wait_ready("e1", 2, 20)
        assert len(processes_of(directory)) == 4
        await runtime.remove("e1")


async def test_two_processes_that_apply_at_once_start_each_worker_once(
    new_runtime: NewRuntime, directory: Path
) -> None:
    both = await asyncio.gather(*(asyncio.to_thread(manager, directory, replicas=2) for _ in range(2)))
    for process in both:
        say(process)
    for process in both:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "applied\n"
        say(process)
        assert await asyncio.to_thread(process.wait) == 0
    seen = await new_runtime().wait_ready("e1", 2, 20)
    assert len(seen.workers) == 2
    assert len(processes_of(directory)) == 4


async def test_many_callers_at_once_agree(runtime: LocalRuntime, directory: Path) -> None:
    await runtime.apply(workload())
    await asyncio.gather(
        *(runtime.scale("e1", 2 + number % 2, 2) for number in range(8)), *(runtime.reconcile() for _ in range(3))
    )
    replicas = (await runtime.observe())["e1"].replicas
    await runtime.wait_ready("e1", replicas, 20)
    assert len(processes_of(directory)) == 2 * replicas


# --- what is on disk is not what runs


async def test_a_pid_that_now_belongs_to_another_is_never_signalled(
    runtime: LocalRuntime, directory: Path, bystander: subprocess.Popen[bytes]
) -> None:
    await runtime.apply(workload())
    await ready(runtime)
    real = supervisor(directory)
    os.kill(real.pid, signal.SIGKILL)
    await eventually(lambda: not processes_of(directory))
    folder = directory / "endpoints/e1/workers/0"
    state = json.loads((folder / "state.json").read_text())
    other = processes.identify(bystander.pid)
    assert other is not None
    for stale in (list(other._replace(started=real.started)), list(other._replace(boot="another"))):
        (folder / "supervisor.lock").write_text(json.dumps({"supervisor": stale}))
        (folder / "state.json").write_text(json.dumps({**state, "server": stale}))
        assert (await one(runtime)).reason == "lost"
        await runtime.stop_all(1)
        await runtime.remove("e1")
        assert bystander.poll() is None
        runtime = LocalRuntime(directory)
        await runtime.apply(workload())
        await ready(runtime)
        os.kill(supervisor(directory).pid, signal.SIGKILL)
        await eventually(lambda: not processes_of(directory))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"supervisor": null}', '{"supervisor": [-1, "1", "x"]}', '{"supervisor": [0, "", ""]}']
)
async def test_damaged_files_are_survived(runtime: LocalRuntime, directory: Path, content: str) -> None:
    await runtime.apply(workload())
    await ready(runtime)
    os.kill(supervisor(directory).pid, signal.SIGKILL)
    await eventually(lambda: not processes_of(directory))
    folder = directory / "endpoints/e1/workers/0"
    for name in ("supervisor.lock", "state.json", "spec.json"):
        (folder / name).write_text(content)
    assert (await one(runtime)).state == "exited"
    await runtime.reconcile()
    assert (await ready(runtime)).state == "ready"


async def test_an_interrupted_removal_is_finished_by_reconcile(runtime: LocalRuntime, directory: Path) -> None:
    await runtime.apply(workload(replicas=2))
    await runtime.wait_ready("e1", 2, 20)
    path = directory / "endpoints/e1/intent.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "removed": True}))
    assert await runtime.reconcile() == {}
    assert processes_of(directory) == []


async def test_workers_without_an_intent_are_stopped(runtime: LocalRuntime, directory: Path) -> None:
    await runtime.apply(workload())
    await ready(runtime)
    (directory / "endpoints/e1/intent.json").unlink()
    assert await runtime.reconcile() == {}
    assert processes_of(directory) == []


async def test_an_intent_that_cannot_be_read_costs_no_worker(runtime: LocalRuntime, directory: Path) -> None:
    await runtime.apply(workload())
    before = await ready(runtime)
    (directory / "endpoints/e1/intent.json").write_text('{"version": 99}')
    assert await runtime.reconcile() == {}
    assert before.pid in processes_of(directory)
    await runtime.apply(workload(generation=2))
    assert (await ready(runtime)).pid == before.pid


async def test_workers_end_when_their_folder_is_deleted(runtime: LocalRuntime, directory: Path) -> None:
    await runtime.apply(workload())
    await ready(runtime)
    assert processes_of(directory)
    shutil.rmtree(directory / "endpoints/e1")
    await eventually(lambda: not processes_of(directory))


# --- the end of the day


async def test_stopping_while_workers_are_being_started_leaves_none(new_runtime: NewRuntime, directory: Path) -> None:
    for generation, delay in enumerate((0.0, 0.01, 0.03, 0.06), start=1):
        runtime = new_runtime()
        applying = asyncio.create_task(runtime.apply(workload(replicas=3, generation=generation)))
        await asyncio.sleep(delay)  # the moment of the stop
        await runtime.stop_all()
        await asyncio.wait([applying])
        assert processes_of(directory) == []


async def test_everything_stops_in_time_and_comes_back(new_runtime: NewRuntime, directory: Path) -> None:
    runtime = new_runtime()
    await runtime.apply(workload(replicas=2))
    await runtime.apply(workload("--stubborn", endpoint="e2", process={"stop_grace": 1.5}))
    await runtime.wait_ready("e1", 2, 20)
    await runtime.wait_ready("e2", 1, 20)
    start = time.monotonic()
    await runtime.stop_all(timeout=1.0)
    assert time.monotonic() - start < 2
    assert processes_of(directory) == []
    stopped = (await runtime.observe())["e1"].workers
    assert [(worker.state, worker.reason) for worker in stopped] == [("exited", "stopped")] * 2

    following = new_runtime()
    await following.reconcile()
    assert len((await following.wait_ready("e1", 2, 20)).ready) == 2
    assert len((await following.wait_ready("e2", 1, 20)).ready) == 1

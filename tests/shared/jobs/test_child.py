"""A function in a child process: its answer, its exceptions, its limits, and that nothing outlives it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.jobs import child
from shared.jobs.child import ChildDied, ChildTimeout, run_child
from shared.jobs.outcomes import Permanent, Retry
from tests.shared.jobs.child_functions import Answer, Question

ROOT = Path(__file__).parents[3]
HERE = "tests.shared.jobs.child_functions"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or needs PR_SET_PDEATHSIG")


async def call(name: str, question: Question | None = None, **options: Any) -> Answer:
    options = {"memory_bytes": None, "timeout": 30, "environment": {"PYTHONPATH": str(ROOT)}} | options
    return await run_child(f"{HERE}:{name}", question or Question(), Answer, **options)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
    except OSError:
        return False
    return not state.startswith("Z")


async def gone(*pids: int) -> bool:
    for _ in range(3000):
        if not any(alive(pid) for pid in pids):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_answer_and_progress_come_back() -> None:
    seen: list[tuple[float | None, str]] = []
    answer = await call("double", Question(text="ä\n", number=21), on_progress=lambda *given: seen.append(given))
    assert (answer.text, answer.number) == ("ä\nä\n", 42)
    assert seen == [(0.5, "half"), (None, "unknown")]


async def test_environment_is_only_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWAY_SECRET", "hidden")
    answer = await call("double", environment={"PYTHONPATH": str(ROOT), "GIVEN": "1"})
    assert "STEPWAY_SECRET" not in answer.environment
    assert answer.environment["GIVEN"] == "1"
    assert answer.environment["PATH"] == os.environ["PATH"]


async def test_outcomes_of_steps_are_raised_again() -> None:
    with pytest.raises(Permanent, match="The file is bad") as permanent:
        await call("permanent")
    assert permanent.value.code == "bad_file"
    with pytest.raises(Retry) as retry:
        await call("retry")
    assert (retry.value.code, retry.value.after) == ("busy", 7.5)


async def test_a_fault_says_how_it_ended_and_keeps_stderr() -> None:
    with pytest.raises(ChildDied, match="status 1") as error:
        await call("fault")
    assert "ValueError: a fault of ours" in error.value.stderr
    with pytest.raises(ChildDied) as error:
        await call("much_noise")
    assert error.value.exit_code == 3
    assert len(error.value.stderr) == 4096
    assert error.value.stderr.endswith("the end")


async def test_death_by_signal() -> None:
    with pytest.raises(ChildDied, match="SIGSEGV") as error:
        await call("kill_itself")
    assert error.value.signal == signal.SIGSEGV


async def test_memory_is_limited_but_mapped_files_are_not_counted(tmp_path: Path) -> None:
    limit = 300 * 1024**2
    with pytest.raises(ChildDied, match="300 MiB of memory"):
        await call("eat_memory", Question(number=2 * limit), memory_bytes=limit)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(4 * limit)
    assert (await call("map_file", Question(text=str(large)), memory_bytes=limit)).number == 4 * limit


async def test_timeout_kills_the_whole_group() -> None:
    pids: list[int] = []
    with pytest.raises(ChildTimeout, match="longer than 5 seconds"):
        await call("hang", timeout=5, on_progress=lambda _, text: pids.extend(map(int, text.split())))
    assert len(pids) == 2
    assert await gone(*pids)


async def test_cancel_kills_the_whole_group_and_reaps_it() -> None:
    started: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        call("hang", on_progress=lambda _, text: started.set_result([int(pid) for pid in text.split()]))
    )
    pid, grandchild = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid}").exists()
    assert await gone(grandchild)


async def test_what_the_function_left_behind_is_killed() -> None:
    assert await gone((await call("leave_one_behind")).number)


async def test_an_exception_in_on_progress_ends_the_child() -> None:
    def refuse(_: float | None, text: str) -> None:
        pids.extend(map(int, text.split()))
        raise RuntimeError("enough")

    pids: list[int] = []
    with pytest.raises(RuntimeError, match="enough"):
        await call("hang", on_progress=refuse)
    assert await gone(*pids)


async def test_no_descriptor_is_left_open() -> None:
    await call("double")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        await call("double")
        with pytest.raises(Permanent):
            await call("permanent")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@linux
async def test_everything_dies_with_a_killed_parent() -> None:
    program = (
        "import asyncio\n"
        "from shared.jobs.child import run_child\n"
        "from tests.shared.jobs.child_functions import Answer, Question\n"
        f"asyncio.run(run_child('{HERE}:hang', Question(), Answer, memory_bytes=None, timeout=60,"
        f" environment={{'PYTHONPATH': {str(ROOT)!r}}}, on_progress=lambda _, text: print(text, flush=True)))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    line = await asyncio.to_thread(parent.stdout.readline)
    pid, grandchild = map(int, line.split())
    zygote = parent_of(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert await gone(pid, grandchild, zygote)


# ---- the zygote


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


async def zygote_of_a_call() -> int:
    return (await call("who")).number


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def running_in_child(pids: list[int]) -> "asyncio.Task[Answer]":
    """A call that hangs; `pids` gets the ids of its child and grandchild."""
    return asyncio.create_task(call("hang", on_progress=lambda _, text: pids.extend(map(int, text.split()))))


async def test_calls_are_forked_from_one_process_and_share_nothing_else() -> None:
    first, second = await call("remember", Question(text="a")), await call("remember", Question(text="b"))
    assert (first.text, second.text) == ("a", "b")
    assert await zygote_of_a_call() == await zygote_of_a_call()


@linux
async def test_the_zygote_holds_nothing_of_its_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEPWAY_SECRET", "hidden")
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    with secret.open() as file, socket.create_server(("127.0.0.1", 0)) as server:
        os.set_inheritable(file.fileno(), True)
        os.set_inheritable(server.fileno(), True)
        environment = {"PYTHONPATH": str(ROOT), "FRESH": "1"}
        place = Path("/proc") / str((await call("who", environment=environment)).number)
        targets = [str(each.readlink()) for each in (place / "fd").iterdir()]
        assert str(secret) not in targets
        assert str(Path(f"/proc/self/fd/{server.fileno()}").readlink()) not in targets
        # three to nowhere, the one to its parent, and the pair that wakes it
        assert sorted(target.partition(":")[0] for target in targets) == ["/dev/null"] * 3 + ["socket"] * 3
    assert b"STEPWAY_SECRET" not in (place / "environ").read_bytes()
    assert len(list((place / "task").iterdir())) == 1
    inside = await call("descriptors", environment=environment)
    assert sorted(inside.text.split()) == ["/dev/null", "/dev/null", "socket", "socket"]


@linux
async def test_an_idle_zygote_ends_and_the_next_call_has_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_IDLE", 0.05)
    environment = {"PYTHONPATH": str(ROOT), "IDLE": "1"}
    first = (await call("who", environment=environment)).number
    await until(lambda: not Path(f"/proc/{first}").exists())
    assert (await call("who", environment=environment)).number != first


@linux
async def test_many_calls_from_a_zygote_that_is_always_about_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_IDLE", 0.0)
    environment = {"PYTHONPATH": str(ROOT), "HASTY": "1"}
    for number in range(5):
        assert (await call("double", Question(number=number), environment=environment)).number == 2 * number


@linux
async def test_a_killed_zygote_takes_its_children_and_the_next_call_works() -> None:
    pids: list[int] = []
    task = running_in_child(pids)
    await until(lambda: len(pids) == 2)
    zygote = parent_of(pids[0])
    os.kill(zygote, signal.SIGKILL)
    with pytest.raises(ChildDied, match="forked from") as error:
        await task
    assert error.value.signal == signal.SIGKILL
    assert await gone(pids[0], zygote)
    os.kill(pids[1], signal.SIGKILL)
    assert await zygote_of_a_call() != zygote


@linux
async def test_a_zygote_that_is_stuck_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_REAPING", 0.2)
    pids: list[int] = []
    task = running_in_child(pids)
    await until(lambda: len(pids) == 2)
    zygote = parent_of(pids[0])
    os.kill(zygote, signal.SIGSTOP)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(*pids, zygote)
    monkeypatch.undo()
    assert await zygote_of_a_call() != zygote


async def test_calls_at_the_same_time_end_each_in_its_own_way() -> None:
    pids: list[int] = []
    hanging = running_in_child(pids)
    await until(lambda: len(pids) == 2)
    answers = await asyncio.gather(
        call("double", Question(number=1)), call("kill_itself"), call("double", Question(number=2)), call("fault"),
        return_exceptions=True,
    )  # fmt: skip
    assert [getattr(each, "number", type(each)) for each in answers] == [2, ChildDied, 4, ChildDied]
    assert alive(pids[0])
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert await gone(*pids)


async def test_a_module_that_cannot_be_imported_is_told_with_its_reason() -> None:
    with pytest.raises(ChildDied, match="status 1") as error:
        await run_child("no.such.module:f", Question(), Answer, memory_bytes=None, timeout=30)
    assert "ModuleNotFoundError" in error.value.stderr


async def test_the_zygote_serves_one_event_loop_after_the_other() -> None:
    def alone() -> int:
        return asyncio.run(zygote_of_a_call())

    assert await asyncio.to_thread(alone) == await zygote_of_a_call() == await asyncio.to_thread(alone)

"""A function in a child process: its answer, its exceptions, its limits, and that nothing outlives it."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.jobs.child import ChildDied, ChildTimeout, run_child
from shared.jobs.outcomes import Permanent, Retry
from tests.shared.jobs.child_functions import Answer, Question

ROOT = Path(__file__).parents[3]
HERE = "tests.shared.jobs.child_functions"


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
    for _ in range(200):
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
    with pytest.raises(ChildTimeout, match="longer than 2 seconds"):
        await call("hang", timeout=2, on_progress=lambda _, text: pids.extend(map(int, text.split())))
    assert len(pids) == 2
    assert await gone(*pids)


async def test_cancel_kills_the_whole_group_and_reaps_it() -> None:
    started: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        call("hang", on_progress=lambda _, text: started.set_result([int(pid) for pid in text.split()]))
    )
    child, grandchild = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{child}").exists()
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


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
async def test_child_dies_with_its_parent() -> None:
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
    child, grandchild = map(int, line.split())
    parent.kill()
    parent.wait()
    try:
        assert await gone(child)
    finally:
        os.kill(grandchild, signal.SIGKILL)

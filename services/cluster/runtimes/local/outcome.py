"""Why a server ended, as a reason and a sentence. Standard library only."""

import signal
from collections.abc import Iterable
from pathlib import Path

_NO_MEMORY = ("out of memory", "cannot allocate memory", "bad_alloc", "memoryerror", "failed to allocate")


def oom_kills() -> int:
    """How often the kernel has killed a process for want of memory, as far as we can see."""
    total = 0
    for path in (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events")):
        try:
            fields = (line.split() for line in path.read_text().splitlines())
            total += sum(int(value) for name, value in fields if name == "oom_kill")
        except (OSError, ValueError):
            continue
    return total


def explain(code: int, log: Iterable[str], *, killed_for_memory: bool = False) -> tuple[str, str]:
    """The reason (`runtimes.base.Reason`) and a sentence. `code` is negative for a signal."""
    if code == -signal.SIGKILL and killed_for_memory:
        return "out_of_memory", "The system ran out of memory and its kernel killed the server."
    if any(phrase in line.lower() for line in log for phrase in _NO_MEMORY) and code != 0:
        return "out_of_memory", f"The server could not get the memory it asked for, and ended with {_ending(code)}."
    if code == 127:
        return "cannot_start", "The server's program could not be started."
    if code < 0:
        return "signal", f"The server was ended by {_ending(code)}."
    return "exited", f"The server ended by itself with {_ending(code)}."


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"

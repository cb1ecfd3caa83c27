"""What this machine has: memory and CPUs as far as this process may use them (control groups included), GPUs, disk."""

import os
import platform
import shutil
import sys
from pathlib import Path

from services.cluster.runtimes.base import ClusterFacts, Gpu, Node

_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_1 = _CGROUP / "memory"


def facts(directory: Path, memory_limit: int | None, cpus: float | None) -> ClusterFacts:
    node = Node(
        name=platform.node() or "localhost",
        cpus=cpus or cpu_count(),
        memory_bytes=memory_limit or memory_total(),
        memory_available_bytes=memory_available(),
        disk_available_bytes=shutil.disk_usage(directory).free,
        gpus=_gpus(),
        os=sys.platform,
        arch=platform.machine(),
        runtime_version=f"python {platform.python_version()}",
    )
    return ClusterFacts(nodes=[node])


def cpu_count() -> float:
    """CPUs that this process may use: its affinity, and the quota of its control group."""
    count = float(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    quota = _text(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        return min(count, int(quota[0]) / int(quota[1]))
    return count


def memory_total() -> int:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _cgroup_limit()
    return min(total, limit) if limit else total


def memory_available() -> int:
    """Memory that could be had without swapping; elsewhere than on Linux all of it, for want of a cheap answer."""
    free = memory_total()
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit = _cgroup_limit()
    return min(free, max(0, limit - _cgroup_used())) if limit else free


def _cgroup_limit() -> int | None:
    text = _text(_CGROUP / "memory.max") or _text(_CGROUP_1 / "memory.limit_in_bytes")
    return int(text) if text.isdigit() else None


def _cgroup_used() -> int:
    """What the control group uses without the file cache that it can drop."""
    used = _text(_CGROUP / "memory.current") or _text(_CGROUP_1 / "memory.usage_in_bytes")
    statistics = _text(_CGROUP / "memory.stat") or _text(_CGROUP_1 / "memory.stat")
    fields = dict(line.split()[:2] for line in statistics.splitlines() if len(line.split()) == 2)
    droppable = int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
    return (int(used) if used.isdigit() else 0) - droppable


def _gpus() -> list[Gpu]:
    """NVIDIA's driver lists its cards in /proc; other makers' are not looked for."""
    found = []
    for card in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        names = [line.partition(":")[2].strip() for line in _text(card).splitlines() if line.startswith("Model:")]
        found.append(Gpu(name=names[0] if names else "NVIDIA"))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

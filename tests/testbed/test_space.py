"""What a cluster leaves behind, after its end and after the SIGKILL of whoever started it: nothing."""

import contextlib
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.cluster import Cluster
from tests.testbed.machine import need
from tests.testbed.space import CGROUPS, Slot, SlotHolder, reap
from tests.testbed.test_cluster import IMAGE, container

KILLED = """
import sys
from tests.testbed.cluster import Cluster
from tests.testbed.test_space import run_pod, running_processes
with Cluster() as cluster:
    run_pod(cluster)
    print(cluster.slot.number, *running_processes(cluster), flush=True)
    sys.stdin.read()
"""
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "sleeps", "namespace": "default", "labels": {"app": "sleeps"}},
    "spec": {
        "containers": [container(IMAGE, command=["python3", "-c", "import time; time.sleep(1000)"])],
        "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}],
        "automountServiceAccountToken": False,
    },
}


@pytest.fixture(autouse=True)
def _can_run() -> None:
    need("kube", "coredns", pods=True, images=("python",))


def run_pod(cluster: Cluster) -> None:
    cluster.load("python")
    cluster.wait("accounts were there", lambda: cluster.api.get("/api/v1/namespaces/default/serviceaccounts")["items"])
    cluster.api.apply("/api/v1/namespaces/default/pods", POD)
    cluster.wait("the pod ran", lambda: cluster.ready_pods("default", "app=sleeps"))


def descendants(pid: int) -> list[int]:
    """With the process itself."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def running_processes(cluster: Cluster) -> set[int]:
    """Its servers, and what has come under the first process: shims and what they run."""
    servers = {pid for name in Cluster.SERVERS for pid in descendants(cluster.space.pid(name))}
    return servers | set(descendants(cluster.space.init))


def command(*parts: str) -> str:
    return subprocess.run(parts, check=True, capture_output=True, text=True).stdout


def rules() -> str:
    """The machine's packet filter, without counters."""
    return "\n".join(line for line in command("iptables-save").splitlines() if not line.startswith((":", "#")))


def traces(slot: Slot) -> Iterator[str]:
    """Everything on this machine that speaks of the slot's cluster."""
    yield from (line for line in Path("/proc/self/mountinfo").read_text().splitlines() if slot.name in line)
    yield from (line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(slot.folder) in line)
    yield from (line for line in command("ip", "-brief", "link").splitlines() if line.startswith(slot.name + "@"))
    yield from (line for line in command("ip", "route").splitlines() if slot.node in line or slot.host in line)
    yield from (
        str(path) for path in (slot.folder, CGROUPS / slot.name, *CGROUPS.glob(f"*/{slot.name}")) if path.exists()
    )


def left(slot: Slot) -> list[str]:
    """Traces of the slot's last cluster. One that was taken again meanwhile had been cleared first."""
    with (slot.folder.parent / f"{slot.number}.lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []
        return list(traces(slot))


def kernel_settings() -> dict[str, str]:
    names = ("kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "net/ipv4/ip_forward")
    return {name: Path("/proc/sys", name).read_text() for name in names}


def test_two_clusters_run_side_by_side_and_one_leaves_nothing_when_it_ends(cluster: Cluster) -> None:
    filters, settings, shims = rules(), kernel_settings(), set(Path("/run").iterdir())
    with Cluster() as other:
        assert other.slot != cluster.slot
        run_pod(other)
        running = running_processes(other)
        assert len(list(traces(other.slot))) > 3
        assert cluster.node_ready()
        assert other.node_ready()
        identities = {one.api.get("/api/v1/namespaces/kube-system")["metadata"]["uid"] for one in (cluster, other)}
        assert len(identities) == 2
    assert [pid for pid in running if Path(f"/proc/{pid}").exists()] == []
    assert left(other.slot) == []
    assert (rules(), kernel_settings(), set(Path("/run").iterdir())) == (filters, settings, shims)
    assert cluster.node_ready()


def test_a_killed_run_ends_by_itself_and_the_next_start_clears_up() -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    number, *running = (int(part) for part in child.stdout.readline().split())
    assert len(running) > len(Cluster.SERVERS) + 2  # the first process, a shim, a container
    child.kill()
    child.wait()
    reap()
    assert [pid for pid in running if Path(f"/proc/{pid}").exists()] == []
    assert left(Slot(number)) == []


def test_a_slot_is_held_by_one_at_a_time_and_free_again() -> None:
    first, second = SlotHolder(), SlotHolder()
    assert first.slot != second.slot
    first.slot.folder.joinpath("file").touch()
    reap()
    assert first.slot.folder.joinpath("file").exists()  # what is in use is let alone
    first.close()
    third = SlotHolder()
    assert third.slot == first.slot
    second.close()
    third.close()

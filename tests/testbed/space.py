"""Machines within the machine: namespaces for processes, mounts and network, in which a cluster leaves no trace.

A `Slot` is a number that one running cluster has, with networks of its own, a folder and a control group; whoever takes
a slot first removes what a killed predecessor left in it. A `Space` is what runs there: its first process is
`space_init`, and when that ends, the kernel ends everything else.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.processes import STOP_SECONDS, Processes, StartError

SLOTS = 32
CGROUPS = Path("/sys/fs/cgroup")
_INIT = Path(__file__).with_name("space_init.py")


@dataclass(frozen=True, slots=True)
class Slot:
    """Networks and names of one cluster. `host` and `node` are the two ends of the link between machine and space."""

    number: int

    @property
    def name(self) -> str:
        return f"stepway-{self.number}"

    @property
    def folder(self) -> Path:
        return _root() / str(self.number)

    @property
    def host(self) -> str:
        return f"10.213.{self.number}.1"

    @property
    def node(self) -> str:
        return f"10.213.{self.number}.2"

    @property
    def pods(self) -> str:
        return f"10.214.{self.number}.0/24"

    @property
    def services(self) -> str:
        return f"10.215.{self.number}.0/24"

    def clear(self) -> None:
        """Remove all that a cluster of this slot has left: processes, interface, control groups, files."""
        with contextlib.suppress(OSError, ValueError):
            _end(*(int(part) for part in (self.folder / "init").read_text().split()))
        subprocess.run(["ip", "link", "delete", self.name], check=False, capture_output=True)
        for group in self.cgroups():
            _remove_cgroup(group)
        shutil.rmtree(self.folder, ignore_errors=True)

    def cgroups(self) -> list[Path]:
        return [path for path in (CGROUPS / self.name, *CGROUPS.glob(f"*/{self.name}")) if path.is_dir()]

    def make_cgroups(self) -> None:
        """The group under which the kubelet puts pods, in every hierarchy."""
        for hierarchy in [CGROUPS] if (CGROUPS / "cgroup.controllers").exists() else CGROUPS.iterdir():
            if (hierarchy / "cgroup.procs").exists() and not hierarchy.is_symlink():
                (hierarchy / self.name).mkdir(exist_ok=True)
        cpuset = CGROUPS / "cpuset"
        for name in ("cpuset.cpus", "cpuset.mems"):  # of version 1: a group without any runs nothing
            if (cpuset / self.name / name).exists():
                (cpuset / self.name / name).write_text((cpuset / name).read_text())


class SlotHolder:
    """Holds a free slot until `close`, or until this process ends: the lock is the kernel's."""

    def __init__(self) -> None:
        _root().mkdir(mode=0o700, exist_ok=True)
        self.slot, self._lock = _take()
        try:
            self.slot.clear()
            self.slot.folder.mkdir()
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        self.slot.clear()
        os.close(self._lock)


def reap() -> None:
    """Clear the slots whose clusters were killed."""
    if not _root().is_dir():
        return
    for number in range(SLOTS):
        lock = _try_lock(number) if (_root() / str(number)).exists() else None
        if lock is not None:
            Slot(number).clear()
            os.close(lock)


class Space(Processes):
    """Servers in namespaces of their own. Process ids are those that the machine sees; signals take these."""

    def __init__(self, slot: Slot) -> None:
        super().__init__(slot.folder)
        self.slot = slot
        self.init = 0  # process id of the first process; 0 before `open`
        self._holder: subprocess.Popen[bytes] | None = None
        self._inner: dict[str, int] = {}

    def open(self) -> None:
        """Make the namespaces and the link to the machine. Raises StartError."""
        namespaces = ("--fork", "--kill-child", "--pid", "--mount", "--net", "--mount-proc")
        self._holder = subprocess.Popen(
            ["unshare", *namespaces, sys.executable, "-I", str(_INIT), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            assert self._holder.stderr is not None
            raise StartError(f"no namespaces: {self._holder.stderr.read().decode(errors='replace')[-1000:]}")
        self.init = _child(self._holder)
        (self.folder / "init").write_text(f"{self.init} {_started(self.init)}")
        self.slot.make_cgroups()
        self._link()

    def close(self) -> None:
        """End everything that runs here; returns when it is gone. What is left in the slot is the slot's to clear."""
        if self._holder is None:
            return
        for stream in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            if stream is not None:
                stream.close()
        try:
            self._holder.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.wait()
        self._holder = None

    def run(self, command: Sequence[str | Path], *, stdin: int | None = None) -> str:
        """A command inside; what it printed. Raises StartError with its own words if it fails."""
        found = subprocess.run([*self._prefix(), *command], check=False, capture_output=True, stdin=stdin)
        if found.returncode != 0:
            raise StartError(f"{command[0]} failed: {found.stderr.decode(errors='replace')[-1500:]}")
        return found.stdout.decode()

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        self._inner.pop(name, None)
        super().start(name, command, environment)

    def pid(self, name: str) -> int:
        if name not in self._inner:
            self._inner[name] = _child(self._running[name])
        return self._inner[name]

    def signal(self, name: str, number: signal.Signals) -> None:
        super().signal(name, number)
        if number != signal.SIGSTOP and self._running[name].poll() is None:
            self._running[name].send_signal(signal.SIGCONT)  # nsenter stops with what it runs

    def _prefix(self) -> list[str]:
        return ["nsenter", f"--target={self.init}", "--mount", "--net", "--pid", "--"]

    def _link(self) -> None:
        slot = self.slot
        peer = ["peer", "name", "eth0", "netns", str(self.init)]
        _ip("link", "add", slot.name, "type", "veth", *peer)
        _ip("address", "add", f"{slot.host}/30", "dev", slot.name)
        _ip("link", "set", slot.name, "up")
        self.run(["ip", "address", "add", f"{slot.node}/30", "dev", "eth0"])
        self.run(["ip", "link", "set", "eth0", "up"])
        self.run(["ip", "link", "set", "lo", "up"])
        for network in (slot.pods, slot.services):
            _ip("route", "replace", network, "via", slot.node)


def _root() -> Path:
    return Path(tempfile.gettempdir()) / "stepway-testbed"


def _take() -> tuple[Slot, int]:
    for number in range(SLOTS):
        lock = _try_lock(number)
        if lock is not None:
            return Slot(number), lock
    raise StartError(f"{SLOTS} clusters run already")


def _try_lock(number: int) -> int | None:
    file = os.open(_root() / f"{number}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _ip(*arguments: str) -> None:
    found = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if found.returncode != 0:
        raise StartError(f"ip {' '.join(arguments)}: {found.stderr.strip()}")


def _end(pid: int, started: int) -> None:
    """Kill the process that had this id and began at this tick, if it still runs, and wait for its end."""
    deadline = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(OSError, ValueError):
        while time.monotonic() < deadline and _started(pid) == started:
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _child(process: "subprocess.Popen[bytes]") -> int:
    """The process id of what unshare or nsenter has forked."""
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for pid in _processes():
            with contextlib.suppress(OSError, ValueError):
                if int(_stat(pid)[1]) == process.pid:
                    return pid
        time.sleep(0.005)
    raise ProcessLookupError("it has ended")


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _started(pid: int) -> int:
    """When it began, in ticks since boot."""
    return int(_stat(pid)[19])


def _stat(pid: int) -> list[str]:
    """The fields after the command's name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _remove_cgroup(group: Path) -> None:
    """With those below it; processes that are just ending keep theirs for a moment."""
    deadline = time.monotonic() + STOP_SECONDS
    for path in [*sorted(group.rglob("*/"), key=lambda one: len(one.parts), reverse=True), group]:
        while path.is_dir() and time.monotonic() < deadline:
            try:
                path.rmdir()
            except OSError:
                time.sleep(0.02)

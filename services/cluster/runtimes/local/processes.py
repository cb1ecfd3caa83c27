"""Which process is which. A pid alone is never trusted: pids are reused, and a reboot starts them over.

Standard library only: the supervisor uses it too.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

LINUX = sys.platform == "linux"


class Identity(NamedTuple):
    """A process for ever: `started` is in clock ticks since boot on Linux, and `ps`'s own text elsewhere."""

    pid: int
    started: str
    boot: str

    @classmethod
    def read(cls, value: Any) -> "Identity | None":
        """From what `list(identity)` became in a JSON file."""
        match value:
            case [int(pid), str(started), str(boot)] if pid > 1:
                return cls(pid, started, boot)
        return None


def boot_id() -> str:
    if LINUX:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return _output("sysctl", "-n", "kern.bootsessionuuid")


def identify(pid: int) -> Identity | None:
    """The identity of a living process; None if there is none, or only its zombie."""
    if LINUX:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else Identity(pid, fields[19], boot_id())
    started = _output("ps", "-o", "lstart=", "-p", str(pid))
    return Identity(pid, started, boot_id()) if started else None


def alive(identity: Identity) -> bool:
    return identify(identity.pid) == identity


def send(identity: Identity, number: signal.Signals) -> bool:
    """Signal exactly this process; False if it is gone. On Linux a pidfd rules out that the pid changes hands meanwhile."""
    try:
        if not LINUX:
            if alive(identity):
                os.kill(identity.pid, number)
                return True
            return False
        descriptor = os.pidfd_open(identity.pid)
        try:
            if not alive(identity):
                return False
            signal.pidfd_send_signal(descriptor, number)
            return True
        finally:
            os.close(descriptor)
    except ProcessLookupError:
        return False


def memory(pid: int) -> int | None:
    """Resident memory in bytes, shared pages included."""
    try:
        if LINUX:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return int(_output("ps", "-o", "rss=", "-p", str(pid))) * 1024
    except (OSError, ValueError, IndexError):
        return None


def _output(*command: str) -> str:
    import subprocess  # only where there is no /proc: it would be a tenth of the supervisor's memory

    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout.strip()

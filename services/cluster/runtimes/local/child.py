"""Starts a model server as a child that cannot outlive its supervisor. Standard library only.

The child leads a process group of its own, so that its helpers end with it. On Linux the kernel kills it when the
supervisor dies; elsewhere the next reconcile does. `ctypes` is loaded before the fork: after it only system calls run.
"""

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_CANNOT_START = 127
_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


class Child:
    """A running server. `output` is the reading end of its stdout and stderr."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        reading, writing = os.pipe()
        supervisor = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _become(argv, environment, directory, writing, supervisor)
        os.close(writing)
        os.set_blocking(reading, False)
        self.output = reading

    def reap(self) -> int | None:
        """The exit code, negative for a signal, once the child has ended; its helpers are killed first.

        Until this has returned a code, the pid and the process group are ours.
        """
        if hasattr(os, "waitid"):  # not on macOS before Python 3.13: there, helpers are left to end by themselves
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self.signal(signal.SIGKILL)
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def signal(self, number: signal.Signals) -> None:
        """Signal the child and its helpers. Only before `reap` has returned a code."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # not yet a group leader, or nothing but a zombie is left
            os.kill(self.pid, number)

    def read(self) -> bytes | None:
        """Output that has come; None when there is none now, empty at its end."""
        try:
            return os.read(self.output, 65536)
        except BlockingIOError:
            return None

    def close(self) -> None:
        os.close(self.output)


def _become(argv: Sequence[str], environment: Mapping[str, str], directory: Path, output: int, supervisor: int) -> None:
    """In the child, after the fork: never returns."""
    try:
        os.setsid()
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != supervisor:
                os._exit(_CANNOT_START)
            _offer_to_the_oom_killer()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(directory)
        os.execve(argv[0], list(argv), dict(environment))  # noqa: S606 (no shell is wanted)
    except OSError as fault:
        os.write(output, f"cannot start {argv[0]}: {fault.strerror}\n".encode())
    finally:
        os._exit(_CANNOT_START)


def _offer_to_the_oom_killer() -> None:
    """When memory runs out, a model server goes before the control plane and its database do."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, b"500")
        os.close(descriptor)
    except OSError:
        pass


def hold_port() -> tuple[socket.socket, int]:
    """Bind a free port of 127.0.0.1 and keep it from everyone but our own server, at every restart of it.

    Two sockets with SO_REUSEADDR may be bound to one port on Linux while only one listens, and nobody who asks for any
    free port is given one that is bound. Elsewhere the socket is closed at once, and the port is only likely to be free.
    """
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port = int(holder.getsockname()[1])
    if sys.platform != "linux":
        holder.close()
    return holder, port

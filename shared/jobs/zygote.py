"""The process that child processes are forked from, and their half of a call. `child` is the caller's half.

`python -m shared.jobs.zygote MODULE SOCKET IDLE_SECONDS` imports MODULE once and then only forks: a child begins with the
imports done, and with nothing that an earlier child has read. It is started clean, so it has neither the caller's
environment nor its files. It ends, with all children, when the socket closes (its caller ended, however that came
about), and by itself after some idle time. It never has a thread: what is forked must not hold another one's locks.

A request is one byte with three sockets: `life`, `talk`, `errors`. The zygote keeps `life`: it answers the child's
process id (-1: it could not be forked), later its exit status (a signal is negative), each 8 bytes, and kills the
child's group when the caller closes its side. The child reads a line with its function and its limit from `talk`, then
the argument, and answers with JSON lines; `errors` is its stderr.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn, get_type_hints

from shared.jobs.outcomes import Permanent, Retry

OUT_OF_MEMORY = 83  # exit status: the memory limit was met
WORD = struct.Struct("<q")
REQUEST = b"F"
_PR_SET_PDEATHSIG = 1


class _Zygote:
    """The children by their `life`. Nothing but `serve` runs between two forks."""

    def __init__(self, control: socket.socket, idle: float) -> None:
        self._control = control
        self._idle = idle
        self._children: dict[socket.socket, int] = {}
        self._selector = selectors.PollSelector()  # has no descriptor that a child would share
        self._woken, self._waking = socket.socketpair()
        self._woken.setblocking(False)
        self._waking.setblocking(False)

    def serve(self) -> tuple[int, int] | None:
        """None in the zygote, when it is to end; in each child, which returns too, its `talk` and `errors`."""
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in self._selector.select(None if self._children else self._idle)]
            if not ready and not self._children:
                return None
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
            for life in [life for life in self._children if life in ready]:
                self._end(life)  # only its end is ever sent
            self._reap()
            if self._control in ready:
                request, descriptors, _, _ = socket.recv_fds(self._control, len(REQUEST), 3)
                if not request:
                    for life in self._children:
                        self._end(life)
                    return None
                if (child := self._fork(*descriptors)) is not None:
                    return child

    def _fork(self, life_fd: int, talk: int, errors: int) -> tuple[int, int] | None:
        life = socket.socket(fileno=life_fd)
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # too many processes, or no memory
            pid = -1
        if pid == 0:
            self._leave(zygote, life)
            return talk, errors
        os.close(talk)
        os.close(errors)
        if pid < 0:
            _tell(life, pid)
            life.close()
            return None
        with contextlib.suppress(OSError):  # here and in the child: whoever is first, the group is there from now on
            os.setpgid(pid, pid)
        self._children[life] = pid
        self._selector.register(life, selectors.EVENT_READ)
        _tell(life, pid)
        return None

    def _leave(self, zygote: int, life: socket.socket) -> None:
        """In a new child: nothing of the zygote stays open, and nothing keeps it alive without the zygote."""
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in (self._control, self._woken, self._waking, life, *self._children):
            each.close()
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != zygote:
            os._exit(1)

    def _end(self, life: socket.socket) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._children[life], signal.SIGKILL)
        if life in self._selector.get_map():
            self._selector.unregister(life)

    def _reap(self) -> None:
        for life, pid in list(self._children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._end(life)  # what the child has left behind; while there is any, no other process gets the number
                del self._children[life]
                _tell(life, os.waitstatus_to_exitcode(status))
                life.close()


def _tell(life: socket.socket, word: int) -> None:
    with contextlib.suppress(OSError):  # the caller may be gone: its end is then read next
        life.send(WORD.pack(word))


def _run_child(talk_fd: int, errors: int) -> NoReturn:
    os.dup2(errors, 2)
    os.close(errors)
    os.set_inheritable(talk_fd, False)
    status = 1
    try:
        _answer(socket.socket(fileno=talk_fd))
        status = 0
    except MemoryError:
        status = OUT_OF_MEMORY
    except BaseException:  # the edge of the process: what was not foreseen is told on stderr, and by the status
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _answer(talk: socket.socket) -> None:
    """Do what `talk` asks for, and say there what comes of it."""
    with talk.makefile("rb") as asked:
        head = json.loads(asked.readline())
        _limit(head["memory_bytes"])
        data = asked.read()

    def send(**message: object) -> None:
        talk.sendall(json.dumps(message).encode() + b"\n")

    try:
        module, _, name = str(head["target"]).partition(":")
        function = getattr(importlib.import_module(module), name)
        hints = [hint for key, hint in get_type_hints(function).items() if key != "return"]
        argument = hints[0].model_validate_json(data)
        answer = function(argument, lambda fraction, message: send(progress=[fraction, message]))
        send(result=answer.model_dump_json())
    except Permanent as error:
        send(permanent=[error.code, error.message])
    except Retry as error:
        send(retry=[error.code, error.message, error.after])


def _limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes:
        # Not RLIMIT_AS: a mapped model file of many GB takes address space but no memory of its own.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


@contextlib.contextmanager
def _few_copies() -> Iterator[None]:
    """What is made in the block is left alone by the collector: touching it would copy its pages in each child."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _main(module: str, control_fd: int, idle: float) -> None:
    control = socket.socket(fileno=control_fd)
    os.set_inheritable(control_fd, False)
    with _few_copies(), contextlib.suppress(Exception):  # the child imports it again, and says what is wrong with it
        importlib.import_module(module)
    child = _Zygote(control, idle).serve()
    if child is not None:
        _run_child(*child)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

"""What a server's process needs: its listeners, the signals that end it, and an end that comes in time whatever steps do."""

import asyncio
import errno
import os
import select
import signal
import socket
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

STOPPING = (signal.SIGTERM, signal.SIGINT)
_EARLY = 0.1  # seconds before the end of the drain at which a process that has not ended is ended
_NOT_THEIRS = (
    str(Path(__file__).parents[1]),
    *{str(Path(sysconfig.get_path(name))) for name in ("stdlib", "purelib", "platlib")},
    "<",
)


class StartError(Exception):
    """The server cannot start; the text is a sentence for whoever started it."""


class InLoading(StartError):
    """A file that is loaded to be served serves by itself."""


being_loaded: list[str] = []  # the user's file, while it is loaded


def refuse_in_loading() -> None:
    """Raises InLoading: `stepway serve` would wait for the file's end, and the file for the server's."""
    if being_loaded:
        raise InLoading(
            f'{being_loaded[-1]} serves by itself while it is loaded: put that under `if __name__ == "__main__":`, '
            "or run the file with python."
        )


def say(sentence: str) -> None:
    """To whoever started this process."""
    print(f"stepway: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 (it is for a person, not for the log)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on all addresses of `host`; with port 0 on one free port. Raises StartError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise StartError(f"Cannot listen on {host}: {reason}.") from None
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            number = port or (listeners[0].getsockname()[1] if listeners else 0)
            listeners.append(_listener(family, kind, protocol, (address[0], number, *address[2:])))
    except OSError as error:
        for one in listeners:
            one.close()
        raise StartError(f"Cannot listen on {host}:{port}: {_why(error)}.") from None
    return listeners


def _listener(family: int, kind: int, protocol: int, address: tuple[str | int, ...]) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(2048)
    except BaseException:
        made.close()
        raise
    made.setblocking(False)
    return made


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program listens there; choose another --port"
    return (error.strerror or type(error).__name__).lower()


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Stopper:
    """SIGTERM and Ctrl-C, for as long as it is entered, and to the end of the process once one has come.

    The first one calls `stop` on the loop, and leaves the process `drain` seconds; the next one ends it at once. A thread
    waits for them, as a step may block the loop. Outside the main thread, which alone gets signals, it does nothing.
    """

    def __init__(self, stop: Callable[[], None], drain: float) -> None:
        self._stop = stop
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._reached = threading.Event()
        self._before: dict[int, object] = {}
        self._other = -1
        self._told = False
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        threading.Thread(target=self._wait, name="stepway-signals", daemon=True).start()
        for number in STOPPING:
            self._before[number] = signal.signal(number, self._handle)
        self._other = signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._before:
            self._in.close()
            self._out.close()
        elif not self._told:
            signal.set_wakeup_fd(self._other)
            for number, handler in self._before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # what it has returned
            self._in.close()  # the thread sees it, and ends

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Runs when the main thread comes to it. The thread knows already, unless someone took the way to it."""
        taken = signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)
        if taken != self._in.fileno():
            self._other = taken
            self._in.send(bytes([number]))

    def _wait(self) -> None:
        deadline = None
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            if not select.select([self._out], [], [], left)[0]:
                self._end_by_force()
            got = self._out.recv(1)
            if not got:
                self._out.close()
                return
            if got[0] not in STOPPING:
                if self._other != -1:
                    os.write(self._other, got)
            elif self._told:
                say("told twice to stop: it ends at once.")
                _exit(128 + got[0])
            else:
                self._told = True
                deadline = time.monotonic() + max(self._drain - _EARLY, self._drain / 2)
                self._loop.call_soon_threadsafe(self._reach)

    def _reach(self) -> None:
        self._reached.set()
        self._stop()

    def _end_by_force(self) -> None:
        what = "a step has not let itself be stopped" if self._reached.is_set() else "a step has blocked the event loop"
        places = "; ".join(_theirs())
        say(f"{what} for {self._drain:g} s{f' ({places})' if places else ''}: the process ends now.")
        _exit(1)


def _exit(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)


def _theirs() -> list[str]:
    """Where threads are in the user's own files."""
    found = []
    for frame in sys._current_frames().values():
        for one in reversed(traceback.extract_stack(frame)):
            if not one.filename.startswith(_NOT_THEIRS):
                found.append(f"{Path(one.filename).name}:{one.lineno}, {one.name}")
                break
    return found

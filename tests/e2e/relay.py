"""A TCP relay that can be cut: an address that is known before what it leads to, and an outage that harms nobody else."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Relay:
    """Listens at `host` within the block, on a port that stays the same. Passes bytes to where `lead_to` said last."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._target: tuple[str, int] | None = None
        self._open = False
        self.connections = 0  # that were passed on
        self._pipes: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server((host, 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.port}"

    def lead_to(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        with self._lock:
            self._target, self._open = (parts.hostname, parts.port), True

    def cut(self) -> None:
        """End all connections, and every new one at once, until `lead_to` or `mend`."""
        with self._lock:
            self._open = False
            pipes = list(self._pipes)
        for one in pipes:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        with self._lock:
            self._open = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with self._lock:
            target = self._target if self._open else None
        if target is None:
            near.close()
            return
        with contextlib.suppress(OSError), near, socket.create_connection(target, timeout=10) as far:
            far.settimeout(None)
            with self._lock:
                self._pipes |= {near, far}
                self.connections += 1
                still_open = self._open
            back = threading.Thread(target=_pipe, args=(far, near), daemon=True)
            if still_open:
                back.start()
                _pipe(near, far)
                back.join()
            with self._lock:
                self._pipes -= {near, far}


def _pipe(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)

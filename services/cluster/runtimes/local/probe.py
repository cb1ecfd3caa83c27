"""One health check over HTTP that never blocks: the supervisor's loop drives it. Standard library only."""

import socket
import time


class Probe:
    """GET a path at a port of this machine. `result` is None until it is known: True for a 2xx answer in time."""

    def __init__(self, port: int, path: str, timeout: float) -> None:
        self.deadline = time.monotonic() + timeout
        self.result: bool | None = None
        self._request = f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode("ascii")
        self._answer = b""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        try:
            self.socket.connect(("127.0.0.1", port))
        except BlockingIOError:
            pass
        except OSError:
            self._end(False)

    @property
    def writing(self) -> bool:
        return bool(self._request)

    def step(self) -> None:
        """Go on after the socket became ready, or at the deadline."""
        if self.result is not None:
            return
        try:
            if self._request:
                self._request = self._request[self.socket.send(self._request) :]
            else:
                self._read()
        except BlockingIOError:
            pass
        except OSError:
            self._end(False)
        if self.result is None and time.monotonic() >= self.deadline:
            self._end(False)

    def close(self) -> None:
        self.socket.close()

    def _read(self) -> None:
        data = self.socket.recv(256)
        self._answer += data
        # "HTTP/1.1 200": twelve bytes say it all
        if not data or len(self._answer) >= 12:
            self._end(self._answer[:5] == b"HTTP/" and self._answer[9:10] == b"2" and len(self._answer) >= 12)

    def _end(self, result: bool) -> None:
        self.result = result
        self.close()

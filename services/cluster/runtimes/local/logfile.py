"""A worker's log: lines with a time, in a file that is cut by size. The supervisor writes, `logs` reads.

Standard library only. A line in the file is `2026-01-31T12:00:00.123Z text`; the file before the cut has `.1` at its end.
"""

import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

NAME = "worker.log"
MAX_LINE = 8192  # bytes; a longer line is split


def stamp() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"


class LogWriter:
    """Takes raw output in pieces of any size, writes whole lines. `secret` never reaches the file."""

    def __init__(self, folder: Path, max_bytes: int, secret: str = "") -> None:
        self._path = folder / NAME
        self._max_bytes = max_bytes
        self._secret = secret.encode()
        self._pending = b""
        self.last: deque[str] = deque(maxlen=20)
        self._file: BinaryIO = self._open()

    def feed(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._write(line)
        while len(self._pending) > MAX_LINE:
            self._write(self._pending[:MAX_LINE])
            self._pending = self._pending[MAX_LINE:]

    def flush(self) -> None:
        """Write what the server left without an end of line."""
        if self._pending:
            self._write(self._pending)
            self._pending = b""

    def note(self, text: str) -> None:
        """A line of the supervisor's own; it is not among the server's `last` lines."""
        self.flush()
        self._append(f"[supervisor] {text}")

    def _write(self, line: bytes) -> None:
        if self._secret:
            line = line.replace(self._secret, b"[secret]")
        for start in range(0, len(line), MAX_LINE) or [0]:
            text = line[start : start + MAX_LINE].decode("utf-8", "replace").rstrip("\r").replace("\0", "\ufffd")
            self.last.append(text[:500])
            self._append(text)

    def _append(self, text: str) -> None:
        try:
            self._file.write(f"{stamp()} {text}\n".encode())
            if self._file.tell() > self._max_bytes:
                self._file.close()
                self._path.replace(self._path.with_name(f"{NAME}.1"))
                self._file = self._open()
        except OSError:  # a full disk must not stop the worker; `last` still has the line
            if self._file.closed:
                self._file = self._open()

    def _open(self) -> BinaryIO:
        self._path.touch(mode=0o600)
        return self._path.open("ab", buffering=0)

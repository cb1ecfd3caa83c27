"""Keeps one child process: the thread that started it lives as long as it does.

Linux sends the signal of PR_SET_PDEATHSIG when the *thread* that forked ends, not the process: were the server started
from a thread of a pool, it would die with that thread. Used by `stepway.postgres.embedded`.
"""

import subprocess
import threading
from collections.abc import Sequence

from stepway.postgres import programs
from stepway.postgres.programs import PostgresError


class Keeper:
    """A running child with standard error at the file descriptor `stderr`. Raises PostgresError if it cannot start."""

    def __init__(self, command: Sequence[str], *, stderr: int, pass_fds: Sequence[int]) -> None:
        self._command = command
        self._stderr = stderr
        self._pass_fds = pass_fds
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="postgres-keeper", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise PostgresError(f"PostgreSQL could not be started: {self._error.strerror}.") from self._error

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self, number: int, timeout: float) -> bool:
        """Send the signal `number` and wait up to `timeout` seconds. Whether the child has ended."""
        if self._process is not None:
            self._process.send_signal(number)
        self._thread.join(timeout)
        return not self.alive

    def _keep(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=self._pass_fds,
                env=programs.environment(),
                cwd="/",
                start_new_session=True,  # Ctrl-C in a terminal is for Stepway, which then stops the server
            )
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        self._process.wait()

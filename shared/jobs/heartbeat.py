"""Renews a process's lease from a thread with a connection of its own: a busy event loop must not lose its runs."""

import threading
from collections.abc import Callable
from uuid import UUID

import psycopg
import structlog

log = structlog.get_logger(__name__)


class Heartbeat:
    """Calls `cancelled(job_ids)` with the runs that are to be undone, and `lost()` when another process has taken over.

    Both are called from the thread.
    """

    def __init__(
        self, url: str, process: UUID, lease: float, cancelled: Callable[[list[UUID]], None], lost: Callable[[], None]
    ) -> None:
        self._url = url
        self._process = process
        self._lease = lease
        self._cancelled = cancelled
        self._lost = lost
        self._stop = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._beat, name="job-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_well(self) -> bool:
        """False when the thread has ended of a fault of ours; not before it begins, nor after its orderly end."""
        return self._thread.ident is None or self._thread.is_alive() or self._ended

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def _beat(self) -> None:
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=3) as connection:
                    while not self._stop.wait(self._lease / 5):
                        if not self._renew(connection):
                            self._ended = True
                            self._lost()
                            return
            except psycopg.Error as error:
                log.warning("heartbeat_failed", error=type(error).__name__)
                self._stop.wait(0.5)
        self._ended = True

    def _renew(self, connection: psycopg.Connection) -> bool:
        renewed = connection.execute(
            "UPDATE jobs.process SET lease_until = clock_timestamp() + make_interval(secs => %s) WHERE id = %s",
            (self._lease, self._process),
        )
        if renewed.rowcount == 0:
            return False
        rows = connection.execute(
            "SELECT id FROM jobs.job WHERE worker = %s AND state = 'cancelling'", (self._process,)
        ).fetchall()
        if rows:
            self._cancelled([row[0] for row in rows])
        return True

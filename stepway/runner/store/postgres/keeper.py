"""Shows that this server lives, and finds out which others do not: a thread with a connection of its own.

A thread, because steps of workflows may block the event loop for long, and that is no death. It holds an advisory lock on
the server's id, counts a beat, hears the notifications of other servers, and observes their locks and beats. All times are
this process's own seconds: no clock of another machine, nor a jump of this one's, says who is dead.

Another server is dead when its beat has stood still for `lease`, or for `LOCK_GRACE` with its lock free (its process has
ended; the grace lets a live one come back over a lost connection). Then its row goes, and with it its right to write;
its runs become due. Whatever transaction of it is still open, if it was frozen in the middle, is ended with its connections.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg import Connection

from stepway.runner.store.postgres.connections import Database, reason, title
from stepway.runner.store.postgres.schema import LOCK, bring_up_to_date

BEAT = 0.5  # seconds
LOCK_GRACE = 1.0
BACKOFF = 0.2
CHANNEL = "stepway_runner"

OTHERS = f"""
SELECT b.server_id, b.count, EXISTS (
    SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid = {LOCK} AND l.objid::bigint = b.server_id
        AND l.objsubid = 2 AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
) FROM stepway_runner.beat b WHERE b.server_id <> %s
"""
TAKE_OVER = """
UPDATE stepway_runner.handler SET server_id = NULL, wake_at = '-infinity', released_at = NULL
WHERE server_id = %s AND status = 'running'
"""
# Two conditions, for the name alone may be anybody's.
END_CONNECTIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name LIKE %s
"""


@dataclass(slots=True)
class _Seen:
    """What is known of another server; seconds are of this process, and count only while it looked."""

    count: int
    looked: float
    quiet: float = 0.0
    unlocked: float = 0.0


class Keeper:
    """`began(id)`: this server has (another) identity. `heard(payload)`: another server has told something.
    `taken_over()`: runs of a dead server are due. All three are called in the thread.
    """

    def __init__(
        self, database: Database, lease: float, began: Callable[[int], None], heard: Callable[[str], None],
        taken_over: Callable[[], None],
    ) -> None:  # fmt: skip
        self.company = False  # whether other servers live
        self.trouble: str | None = None
        self.epoch = 0.0  # what the database's clock said when `time.monotonic` was 0, as this server began
        self._database = database
        self._lease = lease
        self._began, self._heard, self._taken_over = began, heard, taken_over
        self._id: int | None = None
        self._locked = False
        self._others: dict[int, _Seen] = {}
        self._careful_until = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stepway-runner-keeper", daemon=True)

    def open(self) -> None:
        """Connect for the first time, make the tables, and begin. Blocks; raises StoreUnavailable and psycopg.Error."""
        connection = self._database.connect_blocking(title(0, "keeper"))
        try:
            bring_up_to_date(connection)
            self.epoch = _epoch(connection)
            self._register(connection)
        except BaseException:
            connection.close()
            raise
        self._first: Connection | None = connection
        self._thread.start()

    def ask_to_close(self) -> None:
        """It does so when it hears something, or after a beat."""
        self._stopping.set()

    def close(self) -> None:
        """Blocks for at most a beat or so."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(BEAT * 10)

    def _run(self) -> None:
        connection, self._first = self._first, None
        while not self._stopping.is_set():
            try:
                if connection is None:
                    connection = self._database.connect_blocking(title(self._id or 0, "keeper"))
                    # If we lost our connection, others did, too, and are about to come back.
                    self._careful_until = time.monotonic() + self._lease
                    self._others.clear()
                    self._locked = False
                with connection:
                    self._serve(connection)
            except (psycopg.Error, OSError) as error:
                self.trouble = reason(error)
                self._stopping.wait(BACKOFF)
            connection = None

    def _serve(self, connection: Connection) -> None:
        connection.execute(f"LISTEN {CHANNEL}")
        connection.execute("SET synchronous_commit TO off")  # a beat that is lost with the database is no loss
        while not self._stopping.is_set():
            self._beat(connection)
            self._observe(connection)
            self.trouble = None
            for told in connection.notifies(timeout=BEAT):
                self._heard(told.payload)
                if self._stopping.is_set():
                    return

    def _register(self, connection: Connection) -> None:
        """Locked before the row is there to be observed."""
        row = connection.execute("SELECT nextval('stepway_runner.server_ids')::integer").fetchone()
        assert row is not None
        self._id = int(row[0])
        connection.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK, self._id])
        self._locked = True
        with connection.transaction():
            connection.execute("INSERT INTO stepway_runner.server (id) VALUES (%s)", [self._id])
            connection.execute("INSERT INTO stepway_runner.beat (server_id) VALUES (%s)", [self._id])
        connection.execute("SELECT set_config('application_name', %s, false)", [title(self._id, "keeper")])
        self._began(self._id)

    def _beat(self, connection: Connection) -> None:
        done = connection.execute("UPDATE stepway_runner.beat SET count = count + 1 WHERE server_id = %s", [self._id])
        if done.rowcount == 0:  # taken for dead
            if self._locked:
                connection.execute("SELECT pg_advisory_unlock(%s, %s)", [LOCK, self._id])
            self._register(connection)
        elif not self._locked:  # a connection that we lost may hold it for a while
            row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [LOCK, self._id]).fetchone()
            self._locked = row == (True,)

    def _observe(self, connection: Connection) -> None:
        now = time.monotonic()  # before the question: an answer that lay about while we were frozen is an old one
        rows = connection.execute(OTHERS, [self._id]).fetchall()
        known, self._others = self._others, {}
        for server_id, count, locked in rows:
            seen = known.get(server_id)
            if seen is None or seen.count != count:
                seen = _Seen(count, now)
            passed, seen.looked = min(now - seen.looked, 2 * BEAT), now
            seen.quiet += passed
            seen.unlocked = 0.0 if locked else seen.unlocked + passed
            self._others[server_id] = seen
            grace = self._lease if now < self._careful_until else LOCK_GRACE
            if seen.quiet >= self._lease or seen.unlocked >= grace:
                self._bury(connection, server_id, count)
        self.company = bool(self._others)

    def _bury(self, connection: Connection, server_id: int, count: int) -> None:
        connection.execute(END_CONNECTIONS, [title(server_id, "%")])
        try:
            with connection.transaction():
                connection.execute("SET LOCAL lock_timeout TO '2s'")
                # The beat first: it settles who of several observers does this.
                gone = connection.execute(
                    "DELETE FROM stepway_runner.beat WHERE server_id = %s AND count = %s", [server_id, count]
                )
                if not gone.rowcount:
                    return
                connection.execute("DELETE FROM stepway_runner.server WHERE id = %s", [server_id])
                connection.execute(TAKE_OVER, [server_id])
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            return  # its last transaction is just being ended: again at the next beat
        self._others.pop(server_id, None)
        self._taken_over()


def _epoch(connection: Connection) -> float:
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None
    return float(row[0]) - time.monotonic()

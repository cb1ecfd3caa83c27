"""Holds a job at a point of its ledger, from outside: no hook in the code under test.

A trigger on `jobs.step` waits for an advisory lock when a step comes to a state. While the test holds that lock, the
change of state is in its transaction and not committed: at `running` the step has not begun, at `succeeded` its work is
done and nobody knows.
"""

import threading
from types import TracebackType
from typing import LiteralString, Self

import psycopg

from tests.e2e.instance import PATIENCE, Stepway, until

LOCK = 4711

_QUEUED = """SELECT count(*) FROM pg_stat_activity WHERE wait_event IN ('transactionid', 'tuple')
              AND datname = current_database() AND query LIKE 'SELECT 1 FROM jobs.job WHERE id = % FOR UPDATE'"""
_TABLE_QUEUED = """SELECT count(*) FROM pg_locks WHERE relation = 'jobs.job'::regclass AND NOT granted
                    AND mode = 'ShareRowExclusiveLock'"""
_MAKE = f"""
CREATE TABLE IF NOT EXISTS public.test_gate (kind text, key text, state text);
CREATE OR REPLACE FUNCTION public.test_wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM public.test_gate g JOIN jobs.job j ON j.kind = g.kind
                WHERE j.id = NEW.job_id AND g.key = NEW.key AND g.state = NEW.state) THEN
        PERFORM pg_advisory_xact_lock({LOCK});
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER test_gate AFTER INSERT OR UPDATE OF state ON jobs.step
    FOR EACH ROW EXECUTE FUNCTION public.test_wait();
"""  # fmt: skip

_WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"


class Gate:
    """Closed within the block, for one step of jobs of one kind. It opens with the block, or when its server dies."""

    def __init__(self, url: str, kind: str, key: str, state: str) -> None:
        self._point = (kind, key, state)
        self._url = url
        self._connection = psycopg.connect(url, autocommit=True)

    def __enter__(self) -> Self:
        execute = self._connection.execute
        execute(_MAKE)
        execute("TRUNCATE public.test_gate")
        execute("INSERT INTO public.test_gate VALUES (%s, %s, %s)", self._point)
        execute("SELECT pg_advisory_lock(%s)", [LOCK])
        return self

    def wait(self, seconds: float = PATIENCE) -> None:
        """Until a job is held here."""

        def held() -> bool:
            return self._count(_WAITING, LOCK) > 0

        until(held, seconds=seconds, what=f"a job at {self._point}")

    def cancel(self, stepway: Stepway, job: str) -> None:
        """A cancel that comes while the step is held; then the gate is open. Returns when the cancel is through.

        It waits for the job's row, which the held step has locked. Once the step goes on, the run wants that row as well,
        and who has waited longest need not be first: nobody changes jobs until the cancel has it.
        """
        cancel = threading.Thread(target=stepway.ask, args=("POST", f"/jobs/{job}/cancel"))
        cancel.start()
        until(lambda: self._count(_QUEUED) > 0, what="the cancel to queue")
        with psycopg.connect(self._url) as others:
            locking = threading.Thread(target=others.execute, args=("LOCK TABLE jobs.job IN SHARE ROW EXCLUSIVE MODE",))
            locking.start()
            until(lambda: self._count(_TABLE_QUEUED) > 0, what="the lock on all jobs to queue")
            self._connection.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
            locking.join()
            until(lambda: self._count(_QUEUED) == 0, what="the cancel to have the job's row")
        cancel.join()

    def _count(self, statement: LiteralString, *values: object) -> int:
        row = self._connection.execute(statement, values or None).fetchone()
        assert row is not None
        return int(row[0])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

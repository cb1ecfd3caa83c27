"""What the database says of jobs, as gauges: how many there are by kind and state, and how long the oldest is due.

One grouped query over the jobs that live or need a hand, by partial indexes; ended ones are counted when they end
(`metrics.JOBS_ENDED`). It is asked at most every few seconds, however many look, and away when the database is.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import text

from shared.db.engine import Database
from shared.telemetry.probes import Patient

KEPT = 5.0  # seconds
STATES = ("pending", "running", "waiting", "cancelling", "cleanup_required")

_QUERY = text("""
    SELECT kind, state, count(*) AS jobs,
           extract(epoch FROM clock_timestamp() - min(run_at) FILTER (
               WHERE worker IS NULL AND run_at <= clock_timestamp() AND state <> 'cleanup_required')) AS age
      FROM jobs.job
     WHERE worker IS NOT NULL OR state = 'cleanup_required'
        OR (worker IS NULL AND state IN ('pending', 'running', 'waiting', 'cancelling'))
     GROUP BY kind, state
""")

log = structlog.get_logger(__name__)


class LedgerNow(Collector):
    """`await refresh()` before it is collected, from the event loop. `kinds` are shown even when there is no job of them."""

    def __init__(
        self, database: Database, kinds: Callable[[], Iterable[str]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._kinds = kinds
        self._clock = clock
        self._rows: list[Any] | None = None
        self._read_at = float("-inf")
        self._read = Patient(self._query, 2.0)

    async def refresh(self) -> None:
        """Ask the database again, unless that was done just now. Takes two seconds at most, and raises nothing."""
        if self._clock() - self._read_at < KEPT:
            return
        self._rows = await self._read()
        if self._rows is not None:
            self._read_at = self._clock()

    def describe(self) -> Iterable[Metric]:
        return [*self._jobs([]), self._up()]

    def collect(self) -> Iterable[Metric]:
        return [*(self._jobs(self._rows) if self._rows is not None else []), self._up()]

    async def _query(self) -> list[Any]:
        async with self._database.statement() as connection:
            return list((await connection.execute(_QUERY)).all())

    def _up(self) -> Metric:
        family = GaugeMetricFamily("stepway_database_up", "Whether the database answered just now.")
        family.add_metric([], float(self._rows is not None))
        return family

    def _jobs(self, rows: list[Any]) -> list[Metric]:
        counts = {(kind, state): 0 for kind in self._kinds() for state in STATES}
        ages = dict.fromkeys(self._kinds(), 0.0)
        for row in rows:
            counts[row.kind, row.state] = row.jobs
            ages[row.kind] = max(ages.get(row.kind, 0.0), float(row.age or 0.0))
        jobs = GaugeMetricFamily("stepway_jobs", "Jobs that live or need a hand.", labels=("kind", "state"))
        for (kind, state), count in counts.items():
            jobs.add_metric([kind, state], count)
        queue = GaugeMetricFamily(
            "stepway_job_queue_age_seconds", "How long the oldest job that could run has waited.", labels=("kind",)
        )
        for kind, age in ages.items():
            queue.add_metric([kind], age)
        return [jobs, queue]

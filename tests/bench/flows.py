"""Executions of flows through the real app over HTTP, against Prefect 3 with its server on the same PostgreSQL.

Both take turns, with equally small tasks. Ours count from the request to the answer that says COMPLETED, with every task
recorded durably before the next. Prefect's flows are called in a process that is there already; their tasks' states go to
the server afterwards. So they count twice: until they have returned, and until the server has recorded what they did.

Of many small executions ours are 1,000, in a few goes between which Prefect has its turn, and the rate is that of the sum.
Prefect's are as many as it does in bearable time; its rate is that of those, and what 1,000 would take is not measured.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from services.flow.tasks.registry import find_all
from shared.flows import validation
from tests.bench import flows_http
from tests.bench.client import in_process
from tests.bench.figures import Figure, percentile
from tests.bench.flows_peer import Prefect
from tests.bench.memory import of_service
from tests.bench.server import Stepway

TASKS = 100
FEW = 5
GOAL = 3
WAIT = 60.0  # seconds for Prefect's server to record what has run
_TABLES = """SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"""


def run(quick: bool) -> list[Figure]:
    rounds, starts = (2, 10) if quick else (4, 25)
    executions, theirs = 1000 // rounds, (12 if quick else 25)  # of each round
    with Stepway() as stepway, Prefect(stepway.database_url, stepway.root / "prefect") as prefect:
        bench = _Both(stepway, prefect, theirs)
        bench.round(3, 20)  # warm: connections, plans, imports
        bench.forget()
        for _ in range(rounds):
            bench.round(starts, executions)
        return [*bench.figures(), *_validation()]


class _Both:
    """What both took, in seconds. `theirs`: how many executions of a few tasks Prefect has in a round."""

    def __init__(self, stepway: Stepway, prefect: Prefect, theirs: int) -> None:
        self._stepway = stepway
        self._prefect = prefect
        self._theirs = theirs
        self._flows = {
            name: str(stepway.post("/flow/workflows", body)["workflow_id"])
            for name, body in {
                "one": flows_http.flow(1),
                "few": flows_http.flow(FEW),
                "sequence": flows_http.flow(TASKS),
                "parallel": flows_http.flow(TASKS, parallel=True),
            }.items()
        }
        self.forget()

    def forget(self) -> None:
        self._start: tuple[list[float], list[float]] = ([], [])
        self._rates: dict[str, tuple[list[float], list[float]]] = {}
        self._recorded_rates: dict[str, list[float]] = {}  # Prefect's, until its server has recorded all
        self._rows: tuple[float, float] = (0, 0)

    def round(self, starts: int, executions: int) -> None:
        self._start[0].extend(self._ours(flows_http.start, "one", starts))
        self._start[1].extend(self._prefect.measure("start", starts, starts))
        self._prefect.recorded(WAIT)
        for name in ("sequence", "parallel") * 3:
            self._theirs_did(name, TASKS, TASKS)
            self._did(name, TASKS / self._ours(flows_http.one, name))
        before = self._rows_now()
        self._theirs_did("many", self._theirs, self._theirs * FEW)
        self._did("many", executions / self._ours(flows_http.many, "few", executions))
        after = self._rows_now()
        self._rows = ((after[0] - before[0]) / executions, (after[1] - before[1]) / self._theirs)

    def figures(self) -> list[Figure]:
        ours, theirs = (percentile(one, 0.5) * 1000 for one in self._start)
        p99s = "p99 {:.0f} ms, Prefect's {:.0f} ms".format(*(percentile(one, 0.99) * 1000 for one in self._start))
        return [
            Figure("execution asked → first task running, p50", ours, "ms", theirs, "ms Prefect", at_most=1 / GOAL, note=p99s),
            *self._both("tasks, one after the other", "sequence"),
            *self._both("tasks, 100 wide", "parallel"),
            *self._both(self._label_of_many(), "many", statistics.harmonic_mean),  # equal goes: the rate of all
            Figure("rows of such an execution", self._rows[0], "", self._rows[1], "Prefect"),
            Figure("memory, without PostgreSQL", of_service(self._stepway), "MB", self._prefect.memory(), "MB Prefect"),
        ]  # fmt: skip

    def _ours(self, work: Callable[..., Any], name: str, *more: Any) -> Any:
        return in_process(work, self._stepway.host, self._stepway.key, self._flows[name], *more)

    def _did(self, name: str, rate: float) -> None:
        self._rates.setdefault(name, ([], []))[0].append(rate)

    def _theirs_did(self, name: str, count: int, tasks: int) -> None:
        """`count` of what the rate is about, which are so many tasks."""
        took = self._prefect.measure(name, count, tasks)
        late = self._prefect.recorded(WAIT)
        self._rates.setdefault(name, ([], []))[1].append(count / took)
        self._recorded_rates.setdefault(name, []).append(count / (took + late))

    def _label_of_many(self) -> str:
        goes = len(self._recorded_rates["many"])
        return (
            f"1,000 executions of {FEW} tasks, {flows_http.AT_A_TIME} at a time, in {goes} goes; "
            f"Prefect's rate of {goes * self._theirs}"
        )

    def _both(self, label: str, name: str, mean: Callable[[list[float]], float] = statistics.median) -> list[Figure]:
        """The mean of the rounds; Prefect's until its flow has returned, and until all of it is recorded, as ours is."""
        ours, returned = (mean(one) for one in self._rates[name])
        recorded = mean(self._recorded_rates[name])
        return [
            Figure(label, ours, "1/s", theirs, f"1/s Prefect, {until}", at_least=GOAL)
            for until, theirs in (("returned", returned), ("recorded", recorded))
        ]

    def _rows_now(self) -> tuple[int, int]:
        return _rows(self._stepway.database_url), _rows(self._prefect.database_url)


def _rows(url: str) -> int:
    """Of all tables of a database."""
    with psycopg.connect(url) as connection:
        counts = [
            connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*table))).fetchone()
            for table in connection.execute(_TABLES).fetchall()
        ]
    return sum(row[0] for row in counts if row is not None)


def _validation() -> list[Figure]:
    """What the check of a definition costs for each of its tasks: the best of a few."""
    types = find_all()

    def each(count: int) -> float:
        body, taken = flows_http.flow(count), []
        for _ in range(max(3, 1000 // count)):
            began = time.perf_counter()
            validation.accept(body, types)
            taken.append(time.perf_counter() - began)
        return min(taken) / count * 1e6

    costs = {count: each(count) for count in (10, 100, 1000)}
    return [
        Figure(f"validation of {count} tasks, for each", costs[count], "µs", costs[10], "µs of 10", at_most=2)
        for count in (100, 1000)
    ]

"""Memory of an idle installation: the proportional set size (shared pages counted once) of its processes."""

import time
from collections.abc import Iterable
from pathlib import Path

from tests.bench.figures import Figure
from tests.bench.server import Stepway


def run(quick: bool) -> list[Figure]:
    with Stepway() as stepway:
        time.sleep(2 if quick else 10)  # until what the start has left behind is settled
        parts = megabytes(stepway.processes())
    own, postgres = (sum(size for is_postgres, size in parts if is_postgres is which) for which in (False, True))
    return [
        Figure("Stepway, idle", own, "MB"),
        Figure(
            "its PostgreSQL, idle", postgres, "MB", note=f"{sum(is_postgres for is_postgres, _ in parts)} processes"
        ),
    ]


def of_service(stepway: Stepway) -> float:
    """Megabytes of Stepway and all that it has started, without PostgreSQL."""
    return sum(size for is_postgres, size in megabytes(stepway.processes()) if not is_postgres)


def megabytes(pids: Iterable[int]) -> list[tuple[bool, float]]:
    """For each process whether it is PostgreSQL's, and its size."""
    found: list[tuple[bool, float]] = []
    for pid in pids:
        place = Path("/proc") / str(pid)
        try:
            sizes = (place / "smaps_rollup").read_text()
            found.append(((place / "comm").read_text().strip() == "postgres", _pss(sizes)))
        except OSError:
            continue  # it has just ended
    return found


def _pss(sizes: str) -> float:
    line = next(line for line in sizes.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024 / 1_000_000

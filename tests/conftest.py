"""Fixtures that every tier uses: a database cloned from a migrated template."""

import os
import random
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from shared.db import migrate
from shared.db.engine import Database
from tests import postgres

TEMPLATE = "migrated"

# A run in the background (`nohup make test &`) ignores Ctrl-C, and so would all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Its own traceback shows all locals, and takes seconds to be rendered: jobs lose their leases over it.
structlog.configure(
    processors=[
        structlog.stdlib.add_log_level,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture
def database_url() -> Iterator[str]:
    """The URL of a database of the test's own, with all migrations."""
    server = postgres.server()
    server.make_template(TEMPLATE, migrate.upgrade)
    url = server.clone(TEMPLATE)
    yield url
    server.drop(url)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, pool_size=8)
    yield database
    await database.close()


FAULT_SAMPLE = 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of each test marked `faults` keep a seeded sample of its cases (`sample=` says how many), or all by STEPWAY_FAULTS=all."""
    if os.environ.get("STEPWAY_FAULTS") == "all":
        return
    seed = os.environ.get("STEPWAY_FAULTS_SEED", "1")
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("faults"):
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    dropped: list[pytest.Item] = []
    for name, matrix in cases.items():
        marker = matrix[0].get_closest_marker("faults")
        size = marker.kwargs.get("sample", FAULT_SAMPLE) if marker else 0
        kept = random.Random(f"{seed} {name}").sample(matrix, min(size, len(matrix)))
        dropped += [item for item in matrix if item not in kept]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]

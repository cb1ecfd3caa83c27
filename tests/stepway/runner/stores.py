"""The stores that tests of runs are repeated on."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg

from stepway.runner.store import Retention, Store
from stepway.runner.store.memory import MemoryStore
from stepway.runner.store.postgres import PostgresStore
from stepway.runner.store.postgres.schema import bring_up_to_date
from tests import postgres

KINDS = ("memory", "postgres")
TEMPLATE = "runner"


@asynccontextmanager
async def opened(kind: str, retention: Retention | None = None) -> AsyncIterator[Callable[[], Store]]:
    """Makes stores, of which those that are durable share a database."""
    if kind == "memory":
        yield lambda: MemoryStore(retention)
        return
    url = new_database()
    yield lambda: PostgresStore(url, retention)
    postgres.server().drop(url)


def new_database() -> str:
    """The URL of a database of the test's own with a store's tables. `tests.postgres.server().drop` drops it."""
    server = postgres.server()
    server.make_template(TEMPLATE, _make)
    return server.clone(TEMPLATE)


def _make(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        bring_up_to_date(connection)

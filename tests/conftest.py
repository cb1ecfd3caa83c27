"""Fixtures that every tier uses: a database cloned from a migrated template."""

from collections.abc import AsyncIterator, Iterator

import pytest

from shared.db import migrate
from shared.db.engine import Database
from tests import postgres

TEMPLATE = "migrated"


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

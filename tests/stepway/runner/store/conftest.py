"""Stores that a test starts, and that stop after it."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from stepway.runner.store import Store
from tests.stepway.runner.stores import KINDS, opened

Start = Callable[[], Awaitable[Store]]


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """One of each kind."""
    async with opened(request.param) as new_store:
        store = new_store()
        await store.start(lambda: None)
        yield store
        await store.stop()


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts stores on one database, by `await start()`."""
    async with opened("postgres") as new_store:
        started: list[Store] = []

        async def start() -> Store:
            store = new_store()
            await store.start(lambda: None)
            started.append(store)
            return store

        yield start
        for store in started:
            await store.stop()

"""The stores that tests of runs are repeated on."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from stepway.runner.store import Store
from stepway.runner.store.memory import MemoryStore

KINDS = ("memory",)


@asynccontextmanager
async def opened(kind: str) -> AsyncIterator[Callable[[], Store]]:
    """Makes stores, of which those that are durable share a database."""
    yield MemoryStore

"""Runs in a PostgreSQL of the server's own, in a folder: `PostgresStore` on a `stepway.postgres` that it starts and stops."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from stepway.postgres.embedded import EmbeddedPostgres, PostgresError
from stepway.runner.store import Retention, StoreUnavailable
from stepway.runner.store.postgres import PostgresStore

T = TypeVar("T")
log = logging.getLogger(__name__)

WATCH_EVERY = 0.5  # seconds between two looks at PostgreSQL
AGAIN = 2.0  # seconds before it is tried once more to start it
STOP = 0.8  # seconds that it may take to end


class EmbeddedStore(PostgresStore):
    """`folder` is made if it is not there, and is one server's at a time. Raises StoreUnavailable from `start`."""

    def __init__(self, folder: Path, retention: Retention | None = None) -> None:
        super().__init__("postgresql:///", retention)  # where it is, is known when it runs
        self._postgres = EmbeddedPostgres(folder)
        self._work: asyncio.Future[Any] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self, lost: Callable[[], None]) -> None:
        try:
            self._database.move(await self._alone(self._postgres.start))
        except PostgresError as error:
            raise StoreUnavailable(str(error)) from None
        try:
            await super().start(lost)
        except BaseException:
            await self._alone(self._postgres.stop)
            raise
        self._watching = asyncio.create_task(self._watch(), name="watch-postgres")

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        try:
            await super().stop()
        finally:
            await self._alone(lambda: self._postgres.stop(STOP))

    async def _watch(self) -> None:
        """Start PostgreSQL again when it has ended by itself: by someone's hand, or for want of memory."""
        while True:
            await asyncio.sleep(WATCH_EVERY)
            if self._postgres.running:
                continue
            log.error("PostgreSQL has ended by itself, and is started again")
            try:
                await self._alone(self._postgres.stop)
                self._database.move(await self._alone(self._postgres.start))
            except PostgresError as error:
                log.error("%s", error)
                await asyncio.sleep(AGAIN)

    async def _alone(self, work: Callable[[], T]) -> T:
        """In a thread, after what was begun before, which goes on when whoever waits for it is cancelled."""
        if self._work is not None:
            await asyncio.wait([self._work])
        made = asyncio.ensure_future(asyncio.to_thread(work))
        self._work = made
        return await asyncio.shield(made)

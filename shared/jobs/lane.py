"""A few connections of the engine's own, for the statements that every step needs.

Steps report through these, so they never queue behind requests for the process's pool, and a statement costs a
fraction of what it does through SQLAlchemy: on a busy engine that is most of a step's price.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, LiteralString

import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg.rows import namedtuple_row

SIZE = 8
PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between the tries to reach the database
OPTIONS = "-c timezone=UTC -c lock_timeout=10000 -c statement_timeout=60000"

log = structlog.get_logger(__name__)


class Lane:
    """Connections are made when they are needed. Safe for the tasks of one event loop."""

    def __init__(self, url: str, size: int = SIZE) -> None:
        self._url = url
        self._places = asyncio.Semaphore(size)
        self._free: list[psycopg.AsyncConnection[Any]] = []  # the last one in is the first one out: its plans are warm

    async def all(self, statement: LiteralString, values: Mapping[str, Any]) -> list[Any]:
        """The rows of a statement, which is a transaction of its own. Raises psycopg's errors."""
        async with self._places:
            connection = self._free.pop() if self._free else await self._connect()
            try:
                return await (await connection.execute(statement, values)).fetchall()
            finally:
                await self._give_back(connection)

    async def one(self, statement: LiteralString, values: Mapping[str, Any]) -> Any:
        """The only row, or None."""
        rows = await self.all(statement, values)
        return rows[0] if rows else None

    async def patiently(self, statement: LiteralString, values: Mapping[str, Any]) -> tuple[list[Any], bool]:
        """The rows, and whether it was tried before: a try whose answer was lost may have been committed.

        A database that is away, full or too busy is waited for: hours of a step's work are worth it. Who has lost the run
        meanwhile is told so by its fence, or stopped by its engine.
        """
        pause = PAUSE
        while True:
            try:
                return await self.all(statement, values), pause > PAUSE
            except psycopg.OperationalError as error:
                log.warning("ledger_away", error=type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def close(self) -> None:
        while self._free:
            await self._free.pop().close()

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, prepare_threshold=2, row_factory=namedtuple_row, options=OPTIONS,
            connect_timeout=5, application_name="stepway-jobs",
        )  # fmt: skip

    async def _give_back(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if connection.info.transaction_status == TransactionStatus.IDLE:
            self._free.append(connection)
        else:  # broken, or cut off in the midst of an answer
            await connection.close()

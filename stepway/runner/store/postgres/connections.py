"""Connections to the database: for the writer, for the keeper's thread, and a few for reads."""

import asyncio
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection, Connection, conninfo
from psycopg.pq import ConnStatus

from stepway.runner.store import StoreUnavailable
from stepway.runner.store.postgres.values import teach

READERS = 4
CONNECT_SECONDS = 5
ALIVE = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
# What a role or a database may have set otherwise.
SESSION = (
    "SET client_encoding TO 'UTF8'; SET timezone TO 'UTC'; SET statement_timeout TO 0; SET lock_timeout TO 0;"
    " SET idle_in_transaction_session_timeout TO 0; SET default_transaction_isolation TO 'read committed';"
    " SET default_transaction_read_only TO off"
)


class Database:
    """Where it is. Raises StoreUnavailable for a URL that is none."""

    def __init__(self, url: str) -> None:
        self.move(url)

    def move(self, url: str) -> None:
        """Connections that are made from now on go there."""
        try:
            known = conninfo.conninfo_to_dict(url)
        except psycopg.Error:  # its words may quote the password
            raise StoreUnavailable(
                "The database's URL is none: postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
            ) from None
        self._options: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, **ALIVE, **known}

    async def connect(self, title: str) -> AsyncConnection:
        connection = await AsyncConnection.connect(autocommit=True, **{**self._options, "application_name": title})
        try:
            await connection.execute(SESSION)
        except BaseException:
            await connection.close()
            raise
        teach(connection)
        return connection

    def connect_blocking(self, title: str) -> Connection:
        connection = psycopg.connect(autocommit=True, **{**self._options, "application_name": title})
        try:
            connection.execute(SESSION)
        except BaseException:
            connection.close()
            raise
        return connection


def title(server_id: int, role: str) -> str:
    """The application_name of a server's connection: others find and end those of a dead server by it."""
    return f"stepway-runner {server_id} {role}"


def reason(error: Exception) -> str:
    """What PostgreSQL says, without the details, which hold what users gave."""
    told = error.diag.message_primary if isinstance(error, psycopg.Error) and error.sqlstate else str(error)
    return " ".join((told or "").split())[:300] or type(error).__name__


def unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"The database is not available: {reason(error)}")


class Readers:
    """A few connections for reads and for writes that no ownership is needed for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._idle: list[AsyncConnection] = []
        self._places = asyncio.Semaphore(READERS)
        self._closed = False
        self.title = title(0, "reader")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """Raises StoreUnavailable for whatever PostgreSQL says."""
        async with self._places:
            try:
                connection = await self._take()
                try:
                    yield connection
                except BaseException:
                    await connection.close()  # what it is in the middle of is nobody's to know
                    raise
                if self._closed:
                    await connection.close()
                else:
                    self._idle.append(connection)
            except (psycopg.Error, OSError) as error:
                raise unavailable(error) from error

    async def _take(self) -> AsyncConnection:
        while self._idle:
            connection = self._idle.pop()
            if _alive(connection):
                return connection
            await connection.close()
        return await self._database.connect(self.title)

    async def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()


def _alive(connection: AsyncConnection) -> bool:
    """Whether the other end still is there, as far as the socket tells without asking: a farewell, then the end."""
    if connection.closed:
        return False
    try:
        while select.select([connection.fileno()], [], [], 0)[0]:
            connection.pgconn.consume_input()
            if connection.pgconn.status != ConnStatus.OK:
                return False
    except (psycopg.Error, OSError, ValueError):
        return False
    return True

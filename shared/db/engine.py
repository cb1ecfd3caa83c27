"""One pool of connections for a process, and the sessions made from it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sqlalchemy.engine import Connection, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.util import await_only, greenlet_spawn


def driver_url(url: str) -> str:
    """A libpq URL (`postgresql://…`) as SQLAlchemy wants it for psycopg 3."""
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


class Database:
    """`url` is a libpq URL. Sessions do not expire what they loaded: an answer is rendered after the commit."""

    def __init__(self, url: str, *, pool_size: int = 16, name: str = "stepway") -> None:
        self.url = url
        self.most_connections = 2 * pool_size
        self.engine = create_async_engine(
            driver_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=15,
            pool_use_lifo=True,  # few warm connections, whose statements are prepared, rather than all in turn
            pool_pre_ping=False,
            hide_parameters=True,  # what a statement carries may be secret, and errors are logged
            connect_args={
                "application_name": name,
                "prepare_threshold": 3,
                "options": "-c timezone=UTC -c lock_timeout=10000 -c statement_timeout=60000",
            },
        )
        self.statements = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._cut_off: set[asyncio.Task[None]] = set()
        self._shield(self.engine)
        self._shield(self.statements)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session whose work is committed at the end, or rolled back when the block raises."""
        async with self._sessions() as session, session.begin():
            yield session

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """A connection where each statement is its own transaction: one round trip where one statement does it all."""
        async with self.statements.connect() as connection:
            yield connection

    async def close(self) -> None:
        if self._cut_off:
            await asyncio.wait(self._cut_off)
        await self.engine.dispose()

    def _shield(self, engine: AsyncEngine) -> None:
        """Let every checkout come to its end: one that is cut off would leave its connection to the garbage collector."""
        connect = engine.sync_engine.connect

        def shielded() -> Connection:
            return await_only(self._checkout(connect))

        engine.sync_engine.connect = shielded  # type: ignore[method-assign]  # what sessions and connections call

    async def _checkout(self, connect: Callable[[], Connection]) -> Connection:
        task = asyncio.create_task(greenlet_spawn(connect))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            ending = asyncio.create_task(_give_back(task))
            self._cut_off.add(ending)
            ending.add_done_callback(self._cut_off.discard)
            raise


async def _give_back(checkout: "asyncio.Task[Connection]") -> None:
    with contextlib.suppress(Exception):  # nobody waits for the connection any more
        await greenlet_spawn((await checkout).close)

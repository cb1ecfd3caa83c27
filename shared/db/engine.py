"""One pool of connections for a process, and the sessions made from it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine


def driver_url(url: str) -> str:
    """A libpq URL (`postgresql://…`) as SQLAlchemy wants it for psycopg 3."""
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


class Database:
    """`url` is a libpq URL. Sessions do not expire what they loaded: an answer is rendered after the commit."""

    def __init__(self, url: str, *, pool_size: int = 16, name: str = "stepway") -> None:
        self.url = url
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
        await self.engine.dispose()

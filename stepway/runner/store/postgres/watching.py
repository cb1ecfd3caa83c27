"""What happens elsewhere: notifications to and from other servers, and looks into the tables for runs that they own.

Notifications only make things faster; whoever misses one finds out by a look every `POLL` seconds.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable

from stepway.runner.store import StoreUnavailable
from stepway.runner.store.postgres import reading
from stepway.runner.store.postgres.connections import Readers
from stepway.runner.store.postgres.feeds import RING_BYTES, RING_EVENTS, Feed, Feeds
from stepway.runner.store.postgres.keeper import CHANNEL

POLL = 2.0  # seconds
GATHER = 0.02  # seconds between notifications of one server
MOST_BYTES = 7_900  # of a notification
AT_ONCE = 500  # runs that one look asks of
# Nothing is lost with a notification: its commit need not wait for the disk.
NOTIFY = "SELECT set_config('synchronous_commit', 'off', true), pg_notify(%s, %s)"


class Lookout:
    """Keeps the feeds of runs that this server does not own up to date, for those who wait on them."""

    def __init__(self, feeds: Feeds, readers: Readers) -> None:
        self._feeds = feeds
        self._readers = readers
        self._asked: set[Feed] = set()
        self._answer: asyncio.Future[None] | None = None
        self._called = asyncio.Event()

    async def look(self, feeds: Iterable[Feed]) -> None:
        """Bring feeds up to date: a query that begins after this call, one for all who call. Raises StoreUnavailable."""
        self._asked.update(feeds)
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
        self._called.set()
        await asyncio.shield(self._answer)

    def ask(self, runs: Iterable[str] | None) -> None:
        """Look soon after these runs (all of them, without any), as far as somebody waits on them."""
        named = None if runs is None else set(runs)
        self._feeds.tell(named)
        watched = self._feeds.watched()
        if named is not None:
            watched = [feed for feed in watched if feed.run_id in named]
        if watched:
            self._asked.update(watched)
            self._called.set()

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(POLL):
                    await self._called.wait()
            except TimeoutError:
                self._asked.update(self._feeds.watched())
            self._called.clear()
            asked, self._asked = [feed for feed in self._asked if not feed.fresh], set()
            answer, self._answer = self._answer, None
            try:
                for at in range(0, len(asked), AT_ONCE):
                    await self._look(asked[at : at + AT_ONCE])
            except StoreUnavailable as error:
                if answer is not None and not answer.done():
                    answer.set_exception(error)
                    answer.exception()  # those who asked may have gone
            else:
                if answer is not None and not answer.done():
                    answer.set_result(None)

    async def _look(self, feeds: list[Feed]) -> None:
        for feed in feeds:
            feed.stale = False
        async with self._readers.connection() as connection:
            known = [(one.run_id, one.last) for one in feeds]
            news, running = await reading.newer(connection, known, RING_EVENTS, RING_BYTES)
        for feed in feeds:
            if feed.local:  # it has become ours meanwhile
                continue
            feed.add(news.get(feed.run_id, ()))
            if feed.run_id not in running:
                self._feeds.forget(feed.run_id)
                feed.over = True
                feed.ring()
            elif not running[feed.run_id]:
                feed.over = True
                self._feeds.end(feed.run_id)


class Teller:
    """Tells other servers, gathered: which runs have changed, whose inboxes have something, that something is due."""

    def __init__(self, readers: Readers, company: Callable[[], bool]) -> None:
        self._readers = readers
        self._company = company
        self._runs: set[str] = set()
        self._owners: set[int] = set()
        self._due = False
        self._called = asyncio.Event()
        self.server_id = 0

    def tell(self, *, run_id: str | None = None, owner: int | None = None, due: bool = False) -> None:
        if not self._company():
            return
        if run_id is not None:
            self._runs.add(run_id)
        if owner is not None:
            self._owners.add(owner)
        self._due |= due
        self._called.set()

    async def run(self) -> None:
        while True:
            await self._called.wait()
            await self.flush()
            await asyncio.sleep(GATHER)

    async def flush(self) -> None:
        self._called.clear()
        told = {"from": self.server_id, "runs": list(self._runs), "owners": list(self._owners), "due": self._due}
        self._runs.clear()
        self._owners.clear()
        self._due = False
        payload = json.dumps(told)
        if len(payload) > MOST_BYTES:
            payload = json.dumps({**told, "runs": None})
        if len(payload) > MOST_BYTES:
            payload = json.dumps({**told, "runs": None, "owners": None})
        try:
            async with self._readers.connection() as connection:
                await connection.execute(NOTIFY, [CHANNEL, payload])
        except StoreUnavailable:
            pass


class Listener:
    """Understands what others tell. `received`: our inbox has something."""

    def __init__(self, lookout: Lookout, received: Callable[[], None], due: Callable[[], None]) -> None:
        self._lookout = lookout
        self._received = received
        self._due = due

    def heard(self, payload: str, server_id: int) -> None:
        try:
            told = json.loads(payload)
            if told["from"] == server_id:
                return
            runs, owners, due = told["runs"], told["owners"], told["due"]
        except (ValueError, TypeError, KeyError):
            return  # the channel is anybody's who may use the database
        if runs is None or runs:
            self._lookout.ask(runs)
        if owners is None or server_id in owners:
            self._received()
        if due:
            self._due()


async def every(seconds: float, called: asyncio.Event, turn: Callable[[bool], Awaitable[None]]) -> None:
    """A turn when called, and every so many seconds; it gets whether it was called."""
    while True:
        try:
            async with asyncio.timeout(seconds):
                await called.wait()
        except TimeoutError:
            pass
        was = called.is_set()
        called.clear()
        try:
            await turn(was)
        except StoreUnavailable:
            called.set()
            await asyncio.sleep(0.5)

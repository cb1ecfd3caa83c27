"""What readers of runs wait on: the newest events of a run in memory, and a signal that rings when there are more.

A feed of a run that this server owns is filled by the writer after each commit. That of another server's run is filled from
the table when something was told of it (or every few seconds), by one query for all of its readers.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from itertools import islice

from stepway.runner.store import Event

RING_EVENTS = 512
RING_BYTES = 1 << 18  # of one feed; its newest event is kept whatever its size
KEPT = 512  # feeds of runs that this server does not own, or that have ended, and nobody waits on


class Feed:
    """`last`: the newest durable event known. `over`: the run has ended or gone, and the feed knows all its events.
    `stale`: of another server's run, of which something was told since the last look.
    """

    __slots__ = ("_bytes", "_ring", "_signal", "last", "local", "over", "run_id", "stale", "waiting")

    def __init__(self, run_id: str, *, local: bool, last: int = -1) -> None:
        self.run_id = run_id
        self.local = local
        self.last = last
        self.over = False
        self.stale = True
        self.waiting = 0
        self._ring: deque[Event] = deque()
        self._bytes = 0
        self._signal: asyncio.Event | None = None

    @property
    def fresh(self) -> bool:
        """Whether it is always up to date, without asking."""
        return self.local or self.over

    def add(self, events: Iterable[Event]) -> None:
        before = self.last
        for event in events:
            if event.seq <= self.last:
                continue
            if self._ring and event.seq != self.last + 1:
                self._ring.clear()
                self._bytes = 0
            self._ring.append(event)
            self._bytes += len(event.data)
            self.last = event.seq
        while len(self._ring) > RING_EVENTS or (self._bytes > RING_BYTES and len(self._ring) > 1):
            self._bytes -= len(self._ring.popleft().data)
        if self.last != before:
            self.ring()

    def skip_to(self, last: int) -> None:
        """Events up to this one are in the table, and not here."""
        self._ring.clear()
        self._bytes = 0
        self.last = last
        self.ring()

    def ring(self) -> None:
        """Wake all who wait."""
        if self._signal is not None:
            self._signal.set()
            self._signal = None

    def has(self, after: int) -> bool:
        """Whether the ring begins early enough for a reader who has all up to `after`."""
        return bool(self._ring) and self._ring[0].seq <= after + 1 <= self.last

    def read(self, after: int, limit: int, *, internal: bool) -> list[Event]:
        newer = islice(self._ring, max(0, after + 1 - self._ring[0].seq), None)
        return list(islice((one for one in newer if internal or not one.internal), limit))

    async def wait(self, timeout: float) -> None:
        if self._signal is None:
            self._signal = asyncio.Event()
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout):
                await self._signal.wait()
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1


class Feeds:
    """All feeds of this server."""

    def __init__(self) -> None:
        self._feeds: dict[str, Feed] = {}
        self._spare: dict[str, None] = {}  # those that may go when nobody waits on them, oldest first

    def get(self, run_id: str) -> Feed | None:
        return self._feeds.get(run_id)

    def own(self, run_id: str, last: int) -> Feed:
        """The feed of a run that this server owns from now on."""
        feed = self._feeds.get(run_id)
        if feed is None:
            feed = self._feeds[run_id] = Feed(run_id, local=True, last=last)
        elif feed.last < last:
            feed.skip_to(last)
        feed.local = True
        self._spare.pop(run_id, None)
        return feed

    def watch(self, run_id: str) -> Feed:
        """The feed of a run, whoever owns it. A new one knows nothing yet."""
        feed = self._feeds.get(run_id)
        if feed is None:
            feed = self._feeds[run_id] = Feed(run_id, local=False)
            self._may_go(run_id)
        return feed

    def disown(self, run_id: str) -> None:
        """The run goes on elsewhere."""
        feed = self._feeds.get(run_id)
        if feed is not None:
            feed.local, feed.stale = False, True
            self._may_go(run_id)

    def end(self, run_id: str) -> None:
        """The run has ended, with all of its events in the feed."""
        feed = self._feeds.get(run_id)
        if feed is not None:
            feed.local, feed.over = False, True
            feed.ring()
            self._may_go(run_id)

    def forget(self, run_id: str) -> None:
        """The run is gone."""
        self._spare.pop(run_id, None)
        feed = self._feeds.pop(run_id, None)
        if feed is not None:
            feed.local, feed.over = False, True
            feed.ring()

    def tell(self, runs: Iterable[str] | None) -> None:
        """Something was told of these runs, or of any."""
        for run_id in self._spare if runs is None else runs:
            feed = self._feeds.get(run_id)
            if feed is not None:
                feed.stale = True

    def watched(self) -> list[Feed]:
        """Those that someone waits on and that are not filled by the writer."""
        return [feed for run_id in self._spare if (feed := self._feeds[run_id]).waiting and not feed.fresh]

    def _may_go(self, run_id: str) -> None:
        self._spare.pop(run_id, None)
        self._spare[run_id] = None
        if len(self._spare) > KEPT:
            idle = [one for one in self._spare if not self._feeds[one].waiting]
            for one in idle[: KEPT // 2]:
                del self._feeds[one], self._spare[one]

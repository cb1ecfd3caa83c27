"""Readers of an event sequence: all of it in order, however late they come, at one look of the database for all."""

import asyncio
import gc
from uuid import UUID, uuid4

import pytest

from shared.db.engine import Database
from shared.jobs.feed import KEPT, Feeds
from shared.jobs.hub import Hub
from shared.jobs.ledger import Ledger
from tests.shared.jobs.engines import PATIENCE


async def emit(ledger: Ledger, topic: UUID, count: int) -> None:
    async with ledger.database.transaction() as session:
        for number in range(count):
            await ledger.emit_topic(session, topic, "workflow", {"number": number})


async def read(feeds: Feeds, topic: UUID, after: int, until: int) -> list[int]:
    numbers: list[int] = []
    stream = feeds.follow("topic", topic, after)
    async for batch in stream:
        numbers += [event.number for event in batch]
        if numbers[-1] >= until:
            break
    await stream.aclose()  # type: ignore[attr-defined]
    return numbers


async def test_readers_far_behind_and_up_to_date_read_the_same(database: Database) -> None:
    hub = Hub(database)
    ledger, feeds, topic = Ledger(database, hub), Feeds(database, hub), uuid4()
    total = 3 * KEPT
    await emit(ledger, topic, 2 * KEPT)
    async with asyncio.timeout(PATIENCE):
        readers = [asyncio.create_task(read(feeds, topic, after, total)) for after in (0, 5, KEPT, 2 * KEPT)]
        await asyncio.sleep(0.05)
        await emit(ledger, topic, KEPT)
        late = asyncio.create_task(read(feeds, topic, 1, total))
        sequences = await asyncio.gather(*readers, late)
    assert sequences == [list(range(after + 1, total + 1)) for after in (0, 5, KEPT, 2 * KEPT, 1)]
    assert feeds._feeds == {}
    await hub.close()


async def test_many_readers_cost_one_look(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(database)
    await hub.start()
    ledger, feeds, topic = Ledger(database, hub), Feeds(database, hub), uuid4()
    looks = 0
    original = feeds._read

    async def count(*arguments: object) -> object:
        nonlocal looks
        looks += 1
        return await original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(feeds, "_read", count)
    async with asyncio.timeout(PATIENCE):
        readers = [asyncio.create_task(read(feeds, topic, 0, 5)) for _ in range(100)]
        for number in range(5):
            while (feed := feeds._feeds.get(("topic", topic))) is None or (feed.readers, feed.newest) != (100, number):
                await asyncio.sleep(0.01)
            await emit(ledger, topic, 1)
        sequences = await asyncio.gather(*readers)
    assert sequences == [[1, 2, 3, 4, 5]] * 100
    assert looks <= 16
    await hub.close()


async def test_nothing_is_kept_for_who_has_gone(database: Database) -> None:
    hub = Hub(database)
    feeds = Feeds(database, hub)

    async def come_and_go() -> None:
        reader = asyncio.create_task(read(feeds, uuid4(), 0, 1))
        await asyncio.sleep(0.005)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await hub.wait(uuid4(), 0.001)

    for _ in range(50):
        await come_and_go()
    assert feeds._feeds == {}
    async with asyncio.timeout(PATIENCE):
        while len(hub._events):  # until the tasks that were stopped are gone
            await asyncio.sleep(0.01)
            gc.collect()
    await hub.close()


async def test_a_reader_that_knows_of_more_than_there_is_gets_all_of_it(database: Database) -> None:
    hub = Hub(database)
    ledger, feeds, topic = Ledger(database, hub), Feeds(database, hub), uuid4()
    await emit(ledger, topic, 3)
    seen = (None, 0, 2, 3, 4, 10**17)
    assert [await feeds.start_after("topic", topic, one) for one in seen] == [0, 0, 2, 3, 0, 0]
    await hub.close()

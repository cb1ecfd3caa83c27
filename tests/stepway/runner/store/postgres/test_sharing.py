"""Several servers on one database: whose a run is, and what one sees of another's."""

import asyncio
import contextlib

import psycopg
import pytest

from stepway.runner.store import AlreadyOver, AlreadyRunning, End, Entry, Fenced, NewRun, StoreUnavailable
from stepway.runner.store.postgres import PostgresStore, reading
from stepway.runner.store.postgres.keeper import END_CONNECTIONS
from tests import postgres
from tests.stepway.runner.store.conftest import Start
from tests.stepway.runner.store.runs import LONG, claim, claim_all, completed, entry, new, numbers, until
from tests.stepway.runner.stores import new_database


async def test_a_run_that_was_let_go_goes_on_elsewhere_with_all_it_had(start: Start) -> None:
    first, second = await start(), await start()
    await new(first, "h", "r", context='{"given": 1}')
    item = await first.send("h", "kept", "step")
    await first.append("r", entry(0, 0, ticks=3, events=2, state='{"n": 1}'))
    await first.append("r", entry(3, 2, ticks=2, state='{"n": 2}'))
    await first.release("r", None)
    with pytest.raises(Fenced):
        await first.append("r", entry(5, 3))
    saved = await claim(second)
    assert (saved.start, saved.context, saved.state, saved.snapshot) == (
        '{"start": 1}',
        '{"given": 1}',
        '{"n": 2}',
        None,
    )
    assert (saved.tick_seq, saved.ticks) == (0, [f"tick {n}" for n in range(5)])
    assert (saved.next_event, saved.inbox) == (3, [item])
    assert saved.released is not None
    assert 0 <= saved.released < LONG
    await second.append("r", entry(5, 3, acks=[item.id]))
    await second.append("r", Entry(6, end=completed()))
    assert await numbers(first, "r") == [0, 1, 2, 3]


async def test_a_snapshot_stands_for_the_ticks_before_it(start: Start) -> None:
    first, second = await start(), await start()
    await new(first, "h", "r")
    for n in range(10):
        await first.append("r", entry(n, n))
    await first.append("r", entry(10, 10, snapshot="all up to 10"))
    await first.append("r", entry(11, 11))
    await first.release("r", 0)
    saved = await claim(second)
    assert (saved.snapshot, saved.tick_seq, saved.ticks) == ("all up to 10", 10, ["tick 10", "tick 11"])
    together = [second.append("r", entry(12, 12)), second.append("r", Entry(13, snapshot="all up to 13"))]
    await asyncio.gather(*together)
    await second.release("r", 0)
    saved = await claim(first)
    assert (saved.snapshot, saved.tick_seq, saved.ticks, saved.next_event) == ("all up to 13", 13, [], 13)


async def test_a_run_that_was_let_go_is_due_at_its_time(start: Start) -> None:
    first, second = await start(), await start()
    for n, seconds in enumerate((None, 1000.0, 0.3)):
        await new(first, f"h{n}", f"r{n}")
        await first.release(f"r{n}", seconds)
    assert (await claim(second)).handler.run_id == "r2"
    assert await first.claim({"flow": 10}) == []


async def test_a_run_that_waits_wakes_by_what_is_sent_to_it_from_anywhere(start: Start) -> None:
    first, second = await start(), await start()
    await new(first, "h", "r")
    await first.release("r", None)
    assert await second.claim({"flow": 10}) == []
    item = await second.send("h", "wake", None)
    saved = await claim(first)
    assert saved.inbox == [item]
    again = await second.send("h", "again", None)
    async with asyncio.timeout(LONG):
        assert list(await first.received()) == [again]


async def test_what_arrives_while_a_run_is_let_go_makes_it_due(start: Start) -> None:
    first, second = await start(), await start()
    for n in range(20):
        await new(first, f"h{n}", f"r{n}")
    sends = [second.send(f"h{n}", "event", None) for n in range(20)]
    await asyncio.gather(*[first.release(f"r{n}", None) for n in range(20)], *sends)
    saved = await claim_all(second, 20)
    assert [[item.event for item in one.inbox] for one in saved] == [["event"]] * 20


async def test_items_from_all_servers_are_received_once_by_the_owner(start: Start) -> None:
    first, second, third = await start(), await start(), await start()
    for n in range(10):
        await new([first, second][n % 2], f"h{n}", f"r{n}")
    await asyncio.gather(*[[first, second, third][n % 3].send(f"h{n % 10}", f"event {n}", None) for n in range(90)])

    async def receive(store: PostgresStore) -> list[str]:
        got: list[str] = []
        async with asyncio.timeout(LONG):
            while len(got) < 45:
                got += [f"{item.run_id} {item.event}" for item in await store.received()]
            return got

    everything = await asyncio.gather(*[receive(store) for store in (first, second)])  # type: ignore[arg-type]
    for part, got in enumerate(everything):
        assert sorted(got) == sorted(f"r{n % 10} event {n}" for n in range(90) if n % 2 == part)
    for store in (first, second, third):
        more = asyncio.ensure_future(store.received())
        assert not (await asyncio.wait([more], timeout=0.2))[0]
        more.cancel()


async def test_no_run_is_claimed_twice(start: Start) -> None:
    stores = [await start() for _ in range(3)]
    for n in range(300):
        await new(stores[n % 3], f"h{n}", f"r{n}", owned=False) if n < 3 else None
    await asyncio.gather(*[new(stores[n % 3], f"h{n}", f"r{n}", owned=False) for n in range(3, 300)])
    got: list[str] = []
    while len(got) < 300:
        claimed = await asyncio.gather(*[store.claim({"flow": 7}) for store in stores for _ in range(3)])
        got += [one.handler.run_id for part in claimed for one in part]
    assert sorted(got) == sorted(f"r{n}" for n in range(300))


async def test_one_handler_is_made_by_one_server(start: Start) -> None:
    first, second = await start(), await start()
    for round_ in range(10):
        made = await asyncio.gather(
            *[
                new(store, f"h{n}", f"{round_} {n} {name}")
                for name, store in enumerate((first, second))
                for n in range(20)
            ],
            return_exceptions=True,
        )
        good = [one for one in made if not isinstance(one, BaseException)]
        assert sorted(one.handler_id for one in good) == sorted(f"h{n}" for n in range(20))
        assert sum(isinstance(one, AlreadyRunning) for one in made) == 20
        for one in good:
            owner = [first, second][int(one.run_id[-1])]
            await owner.append(one.run_id, entry(0, 0, end=completed()))


async def test_a_run_ends_or_takes_an_item_but_never_both_in_vain(start: Start) -> None:
    """What a sender was told is true: an item that was taken was there before the end."""
    first, second = await start(), await start()
    for n in range(30):
        await new(first, f"h{n}", f"r{n}")
    ends = [first.append(f"r{n}", Entry(0, end=completed())) for n in range(30)]
    sends = await asyncio.gather(*[second.send(f"h{n}", "late", None) for n in range(30)], return_exceptions=True)
    await asyncio.gather(*ends)
    assert all(isinstance(one, AlreadyOver) for one in sends if isinstance(one, BaseException))
    with pytest.raises(AlreadyOver):
        await second.send("h0", "later", None)


async def test_readers_elsewhere_see_all_events_in_order_to_the_end(start: Start) -> None:
    owner, *others = [await start() for _ in range(3)]
    await new(owner, "h", "r")

    async def read(store: PostgresStore) -> list[int]:
        seen: list[int] = []
        while True:
            handler = await store.get("h")
            found = await numbers(store, "r", seen[-1] if seen else -1, 7)
            seen += found
            if not found and handler is not None and handler.over:
                return seen
            if not found:
                await store.changed("r", seen[-1] if seen else -1, 5.0)

    async with asyncio.timeout(LONG):
        readers = [asyncio.ensure_future(read(store)) for store in (owner, *others) for _ in range(30)]  # type: ignore[arg-type]
        for n in range(50):
            await owner.append("r", entry(n, n * 3, events=3))
            await asyncio.sleep(0.01)
        await owner.append("r", Entry(50, [], end=completed()))
        for seen in await asyncio.gather(*readers):
            assert seen == list(range(150))


async def test_many_readers_elsewhere_ask_the_database_together(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, other = await start(), await start()
    await new(owner, "h", "r")
    asked = 0
    newer = reading.newer

    async def counted(*given: object) -> object:
        nonlocal asked
        asked += 1
        return await newer(*given)  # type: ignore[arg-type]

    async def table(*_given: object, **_more: object) -> object:
        raise AssertionError("a reader that follows needs no query of its own")

    await owner.append("r", entry(0, 0))
    readers = [asyncio.ensure_future(_follow(other, "r", 20)) for _ in range(200)]  # type: ignore[arg-type]
    await until(lambda: _waiting(other, "r", 200))  # type: ignore[arg-type]
    monkeypatch.setattr(reading, "newer", counted)
    monkeypatch.setattr(reading, "events", table)
    for n in range(1, 20):
        await owner.append("r", entry(n, n))
    async with asyncio.timeout(LONG):
        for seen in await asyncio.gather(*readers):
            assert seen == list(range(20))
    assert asked <= 150  # for 3,800 events that were read


async def _follow(store: PostgresStore, run_id: str, count: int) -> list[int]:
    seen: list[int] = []
    while len(seen) < count:
        found = await numbers(store, run_id, seen[-1] if seen else -1)
        seen += found
        if not found:
            await store.changed(run_id, seen[-1] if seen else -1, 5.0)
    return seen


async def _waiting(store: PostgresStore, run_id: str, count: int) -> bool:
    feed = store._feeds.get(run_id)
    return feed is not None and feed.waiting == count


async def test_a_purge_elsewhere_fences_the_owner(start: Start) -> None:
    first, second = await start(), await start()
    await new(first, "h", "r")
    await first.append("r", entry(0, 0))
    await new(first, "other", "other")
    assert await second.purge("h")
    refused = first.append("r", entry(1, 1))
    kept = first.append("other", entry(0, 0))
    with pytest.raises(Fenced):
        await refused
    await kept
    assert await numbers(first, "r") == []
    assert await second.get("h") is None


async def test_runs_of_a_store_that_stops_are_claimed_at_once(start: Start) -> None:
    first, second = await start(), await start()
    for n in range(50):
        await new(first, f"h{n}", f"r{n}")
        pending = first.append(f"r{n}", entry(0, 0))
    await first.stop()
    await pending
    saved = await claim_all(second, 50)
    assert {one.ticks[0] for one in saved} == {"tick 0"}
    assert all(one.released is None for one in saved)


async def test_a_lost_connection_costs_nothing(start: Start) -> None:
    """Others look for a moment before they take a server for dead; and what was pending is written once."""
    url = new_database()
    losses: list[int] = []
    stores = [PostgresStore(url) for _ in range(2)]
    for store in stores:
        await store.start(lambda: losses.append(1))
    with psycopg.connect(url, autocommit=True) as admin:
        for n in range(10):
            await new(stores[0], f"h{n}", f"r{n}")
        written = []
        for turn in range(60):
            written += [stores[0].append(f"r{n}", entry(turn, turn)) for n in range(10)]
            if turn % 10 == 5:
                admin.execute(END_CONNECTIONS, ["stepway-runner %"])
            await asyncio.sleep(0.01)
        await asyncio.gather(*written)
        for n in range(10):
            assert await until_numbers(stores[1], f"r{n}") == list(range(60))
    for store in stores:
        await store.stop()
    postgres.server().drop(url)
    assert losses == []


async def until_numbers(store: PostgresStore, run_id: str) -> list[int]:
    """A pooled connection may still be a broken one."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            return await numbers(store, run_id)


async def test_an_identity_that_is_gone_is_replaced(start: Start) -> None:
    """What a frozen server finds when it comes back: its runs are lost, and it goes on."""
    url = new_database()
    lost = asyncio.Event()
    store, other = PostgresStore(url), PostgresStore(url)
    await store.start(lost.set)
    await other.start(lambda: None)
    await new(store, "h", "r")
    await store.append("r", entry(0, 0))
    with psycopg.connect(url) as admin:
        admin.execute("DELETE FROM stepway_runner.beat WHERE server_id = 1")
        admin.execute("DELETE FROM stepway_runner.server WHERE id = 1")
        admin.execute("UPDATE stepway_runner.handler SET server_id = NULL, wake_at = now()")
    late, made = store.append("r", entry(1, 1)), asyncio.ensure_future(new(store, "h2", "r2"))
    with pytest.raises(Fenced):
        await late
    async with asyncio.timeout(LONG):
        await lost.wait()
        await made
        await store.append("r2", entry(0, 0))
        saved = await claim(other)
        assert (saved.handler.run_id, saved.ticks) == ("r", ["tick 0"])
        await store.send("h", "to the new owner", None)
        assert [item.event for item in await other.received()] == ["to the new owner"]
    await store.stop()
    await other.stop()
    postgres.server().drop(url)


async def test_who_gives_up_on_a_create_leaves_no_run(start: Start) -> None:
    store = await start()
    tasks = [asyncio.create_task(store.create(NewRun(f"h{n}", "flow", f"r{n}", None))) for n in range(40)]
    for n, task in enumerate(tasks):
        await asyncio.sleep(0)
        if n % 2:
            task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    made = {one.handler_id for one in done if not isinstance(one, BaseException)}

    async def only_those() -> bool:
        page, _ = await store.page(None, None, None, None)
        return {one.handler_id for one in page} == made

    await until(only_those)
    assert len(made) >= 20
    await store.append("r0", Entry(0, end=End("cancelled")))

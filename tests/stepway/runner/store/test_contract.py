"""What every store does, whatever it is made of."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from stepway.runner.store import (
    AlreadyOver,
    AlreadyRunning,
    End,
    Entry,
    Event,
    Fenced,
    Retention,
    Store,
    UnknownHandler,
)
from tests.stepway.runner.store.runs import LONG, claim, completed, entry, new, numbers
from tests.stepway.runner.stores import KINDS, opened

# PostgreSQL's text takes none of these two, and a backslash must not be taken for how we write them.
ODD = 'a \0 NUL, a lone \ud800 surrogate, \\u0000, \\ and \\\\, ü, 💡, "quotes", {braces}, %s'


async def test_a_new_run_is_running(store: Store) -> None:
    before = datetime.now(UTC)
    made = await new(store, "h", "r")
    assert (made.handler_id, made.run_id, made.workflow_name, made.status) == ("h", "r", "flow", "running")
    assert (made.error, made.result, made.completed_at) == (None, None, None)
    assert abs(made.started_at - before) < timedelta(minutes=1)
    assert await store.get("h") == made
    assert await store.get("other") is None


async def test_a_running_handler_takes_no_second_run(store: Store) -> None:
    await new(store, "h", "r")
    with pytest.raises(AlreadyRunning):
        await new(store, "h", "r2")
    got = await store.get("h")
    assert got is not None
    assert got.run_id == "r"


async def test_of_many_who_create_a_handler_at_once_one_succeeds(store: Store) -> None:
    made = await asyncio.gather(*[new(store, "h", f"r{n}") for n in range(20)], return_exceptions=True)
    (one,) = [handler for handler in made if not isinstance(handler, BaseException)]
    assert sum(isinstance(error, AlreadyRunning) for error in made) == 19
    assert await store.get("h") == one


async def test_an_entry_is_there_when_its_append_has_returned(store: Store) -> None:
    await new(store, "h", "r")
    await store.append("r", entry(0, 0, ticks=2, events=3))
    assert await numbers(store, "r") == [0, 1, 2]
    assert await numbers(store, "r", internal=False) == [0, 2]
    assert await numbers(store, "r", 0, 1) == [1]
    assert await numbers(store, "r", 2) == []
    assert await store.last_event("r") == 2
    assert await store.last_event("no run") == -1
    assert await numbers(store, "no run") == []


async def test_entries_keep_their_order_without_being_waited_for(store: Store) -> None:
    await new(store, "h", "r")
    written = [store.append("r", entry(n, n)) for n in range(100)]
    await asyncio.gather(*written)
    assert await numbers(store, "r") == list(range(100))


async def test_an_entry_is_written_though_nobody_waits_for_it_any_more(store: Store) -> None:
    await new(store, "h", "r")

    async def step() -> None:
        await store.append("r", entry(0, 0))

    task = asyncio.create_task(step())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await store.append("r", Entry(1))
    assert await numbers(store, "r") == [0]


async def test_a_run_ends_once(store: Store) -> None:
    await new(store, "h", "r")
    await store.append("r", entry(0, 0, end=completed(context='{"kept": 1}')))
    over = await store.get("h")
    assert over is not None
    assert (over.status, over.result, over.error) == ("completed", {"value": {"result": 42}}, None)
    assert over.completed_at is not None
    assert over.completed_at >= over.started_at
    assert await store.ended_context("h") == '{"kept": 1}'
    assert await numbers(store, "r") == [0]
    with pytest.raises(Fenced):
        await store.append("r", entry(1, 1))
    with pytest.raises(AlreadyOver):
        await store.send("h", "event", None)
    assert await store.claim({"flow": 10}) == []


async def test_an_entry_after_the_end_is_refused_at_once(store: Store) -> None:
    await new(store, "h", "r")
    last, late = store.append("r", entry(0, 0, end=End("failed", error="No"))), store.append("r", entry(1, 1))
    await last
    with pytest.raises(Fenced):
        await late
    assert await numbers(store, "r") == [0]


async def test_an_ended_handler_begins_anew(store: Store) -> None:
    await new(store, "h", "r", context='{"old": 1}')
    await store.send("h", "old", None)
    await store.append("r", entry(0, 0, events=3, end=End("failed", error="No", context="{}")))
    again = await new(store, "h", "r2")
    assert (again.status, again.error, again.result, again.run_id) == ("running", None, None, "r2")
    assert await store.get("h") == again
    assert await store.ended_context("h") is None
    assert await numbers(store, "r2") == []
    assert await numbers(store, "r") == []
    await store.append("r2", entry(0, 0, end=completed()))
    assert await numbers(store, "r2") == [0]


async def test_a_reading_is_bounded_in_bytes(store: Store) -> None:
    await new(store, "h", "r")
    await store.append(
        "r", Entry(0, [], [Event(n, False, "x" * size) for n, size in enumerate((1, 100, 300_000, 300_000, 5))])
    )
    for after, size, wanted in (
        (-1, 1000, [0, 1, 2]),
        (1, 1000, [2]),
        (1, 1, [2]),
        (-1, 400_000, [0, 1, 2, 3]),
        (2, 1 << 30, [3, 4]),
    ):
        found = await store.events("r", after, 10, internal=True, size=size)
        assert [one.seq for one in found] == wanted
    assert len(await store.events("r", -1, 2, internal=True, size=1 << 30)) == 2


async def test_what_is_odd_survives(store: Store) -> None:
    await new(store, f"h{ODD}", "r", workflow_name=f"flow{ODD}", start=ODD, context=ODD, owned=False)
    await store.send(f"h{ODD}", ODD, ODD)
    saved = await claim(store, workflow=f"flow{ODD}")
    assert (saved.start, saved.context) == (ODD, ODD)
    assert [(one.event, one.step) for one in saved.inbox] == [(ODD, ODD)]
    end = End("failed", error=ODD, result={"value": ODD, "n": 1.5}, context=ODD)
    await store.append("r", Entry(0, [ODD], [Event(0, False, ODD)], state=ODD))
    await store.append("r", Entry(1, [], [Event(1, False, "")], end=end))
    over = await store.get(f"h{ODD}")
    assert over is not None
    assert (over.handler_id, over.workflow_name, over.error) == (f"h{ODD}", f"flow{ODD}", ODD)
    assert over.result == {"value": ODD, "n": 1.5}
    assert await store.ended_context(f"h{ODD}") == ODD
    assert [one.data for one in await store.events("r", -1, 10, internal=True)] == [ODD, ""]
    assert ([one.workflow_name for one in (await store.page(None, [f"flow{ODD}"], None, None))[0]]) == [f"flow{ODD}"]


async def test_large_payloads_survive(store: Store) -> None:
    large = "ü" * (5 << 20)
    await new(store, "h", "r", start=large, owned=False)
    assert (await claim(store)).start == large
    await store.append("r", Entry(0, [large], [Event(n, False, f"{large}{n}") for n in range(2)]))
    await store.append("r", Entry(1, [], [], end=End("completed", result={"value": large}, context=large)))
    assert [one.data[-1] for one in await store.events("r", -1, 10, internal=True)] == ["0", "1"]
    over = await store.get("h")
    assert over is not None
    assert over.result == {"value": large}


async def test_what_is_sent_is_received_once(store: Store) -> None:
    await new(store, "h", "r")
    sent = [await store.send("h", f"event {n}", "step" if n else None) for n in range(3)]
    assert [(one.event, one.step, one.run_id) for one in sent] == [
        ("event 0", None, "r"), ("event 1", "step", "r"), ("event 2", "step", "r"),
    ]  # fmt: skip
    received = list(await store.received())
    assert received == sent
    cancel = await store.send("h", None, None)
    assert cancel.event is None
    await store.append("r", Entry(0, ["tick"], acks=[one.id for one in sent]))
    assert list(await store.received()) == [cancel]
    again = asyncio.ensure_future(store.received())
    assert not (await asyncio.wait([again], timeout=0.1))[0]
    again.cancel()


async def test_nothing_can_be_sent_to_what_is_not_there(store: Store) -> None:
    with pytest.raises(UnknownHandler):
        await store.send("h", "event", None)


async def test_runs_without_an_owner_are_claimed_in_order_as_there_is_room(store: Store) -> None:
    for n in range(5):
        await new(store, f"h{n}", f"r{n}", owned=False)
    await new(store, "other", "other", owned=False, workflow_name="other")
    await new(store, "mine", "mine")
    assert await store.claim({"flow": 0, "unknown": 5}) == []
    await store.send("h0", "early", None)
    first = await store.claim({"flow": 2})
    assert [one.handler.run_id for one in first] == ["r0", "r1"]
    assert [one.event for one in first[0].inbox] == ["early"]
    assert (first[1].start, first[1].context, first[1].ticks, first[1].next_event) == (
        '{"start": 1}',
        None,
        first[1].ticks,
        0,
    )
    assert (first[1].tick_seq, list(first[1].ticks), first[1].released) == (0, [], None)
    assert [one.handler.run_id for one in await store.claim({"flow": 10})] == ["r2", "r3", "r4"]
    assert await store.claim({"flow": 10}) == []
    assert [one.handler.run_id for one in await store.claim({"other": 1})] == ["other"]
    await store.append("r0", entry(0, 0, end=completed()))
    later = await store.send("r1".replace("r", "h"), "later", None)
    assert list(await store.received()) == [later]


async def test_a_run_that_becomes_due_is_told_of(store: Store) -> None:
    waiting = asyncio.ensure_future(store.due())
    await new(store, "h", "r", owned=False)
    async with asyncio.timeout(LONG):
        await waiting
        assert (await claim(store)).handler.run_id == "r"


async def test_a_run_without_an_owner_is_ended(store: Store) -> None:
    await new(store, "h", "r", owned=False)
    await new(store, "mine", "mine")
    assert await store.end_unowned("r", End("cancelled"), "the last") is True
    over = await store.get("h")
    assert over is not None
    assert over.status == "cancelled"
    assert over.completed_at is not None
    assert [(one.seq, one.internal, one.data) for one in await store.events("r", -1, 10, internal=False)] == [
        (0, False, "the last")
    ]
    assert await store.end_unowned("r", End("cancelled"), "again") is False
    assert await store.end_unowned("mine", End("cancelled"), "not mine") is False
    assert await store.end_unowned("unknown", End("cancelled"), "unknown") is False
    assert await store.claim({"flow": 10}) == []


async def test_readers_are_woken_by_events_and_by_the_end(store: Store) -> None:
    await new(store, "h", "r")
    async with asyncio.timeout(LONG):
        waiting = [asyncio.ensure_future(store.changed("r", -1, LONG * 2)) for _ in range(200)]
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in waiting)
        await store.append("r", entry(0, 0))
        await asyncio.gather(*waiting)
        await store.changed("r", -1, LONG * 2)  # there is one already
        at_end = asyncio.ensure_future(store.changed("r", 0, LONG * 2))
        await asyncio.sleep(0)
        await store.append("r", Entry(1, end=completed()))
        await at_end
        await store.changed("r", 0, LONG * 2)  # nothing will come
        await store.changed("unknown", 0, LONG * 2)
    await new(store, "h2", "r2")
    await store.changed("r2", -1, 0.01)


async def test_a_reader_behind_gets_all(store: Store) -> None:
    await new(store, "h", "r")
    for n in range(20):
        await store.append("r", entry(n, n * 100, events=100))
    assert await numbers(store, "r") == list(range(2000))
    assert await numbers(store, "r", 1990) == list(range(1991, 2000))
    assert await numbers(store, "r", 500, 100) == list(range(501, 601))


async def test_pages_go_from_the_newest_to_the_oldest(store: Store) -> None:
    for n in range(7):
        await new(store, f"h{n}", workflow_name="even" if n % 2 == 0 else "odd")
    await store.append("run of h3", entry(0, 0, end=completed()))
    everything, after = await store.page(None, None, None, None)
    assert ([one.handler_id for one in everything], after) == ([f"h{n}" for n in range(6, -1, -1)], None)
    assert [one.handler_id for one in (await store.page(["completed"], None, None, None))[0]] == ["h3"]
    assert [one.handler_id for one in (await store.page(["running"], ["odd"], None, None))[0]] == ["h5", "h1"]
    assert await store.page(None, ["none"], 5, None) == ([], None)
    seen, cursor = list[str](), None
    while True:
        page, cursor = await store.page(None, None, 3, cursor)
        seen += [one.handler_id for one in page]
        if cursor is None:
            break
    assert seen == [f"h{n}" for n in range(6, -1, -1)]
    with pytest.raises(ValueError, match=r"."):
        await store.page(None, None, 3, "none")


async def test_a_purged_run_is_gone_and_its_owner_learns_it(store: Store) -> None:
    await new(store, "h", "r")
    await store.append("r", entry(0, 0))
    async with asyncio.timeout(LONG):
        reader = asyncio.ensure_future(store.changed("r", 0, LONG * 2))
        await asyncio.sleep(0)
        assert await store.purge("h") is True
        await reader
    with pytest.raises(Fenced):
        await store.append("r", entry(1, 1))
    assert await store.get("h") is None
    assert await numbers(store, "r") == []
    assert await store.purge("h") is False
    await new(store, "h", "r2", owned=False)
    assert await store.purge("h") is True
    assert await store.claim({"flow": 1}) == []


async def test_old_handlers_go(store: Store) -> None:
    for n in range(6):
        await new(store, f"h{n}")
    for n in range(5):
        await store.append(f"run of h{n}", entry(0, 0, end=completed()))
    assert await store.trim(Retention()) == 0
    assert await store.trim(Retention(age=3600, number=10)) == 0
    assert await store.trim(Retention(number=2)) == 3
    assert [one.handler_id for one in (await store.page(None, None, None, None))[0]] == ["h5", "h4", "h3"]
    assert await numbers(store, "run of h0") == []
    await asyncio.sleep(0.01)
    assert await store.trim(Retention(age=0.001)) == 2
    assert [one.handler_id for one in (await store.page(None, None, None, None))[0]] == ["h5"]


@pytest.mark.parametrize("kind", KINDS)
async def test_old_events_of_a_run_go(kind: str) -> None:
    retention = Retention(events=10)
    async with opened(kind, retention) as new_store:
        store = new_store()
        await store.start(lambda: None)
        await new(store, "h", "r")
        await store.append("r", entry(0, 0, events=35))
        await store.trim(retention)
        assert await numbers(store, "r", 24) == list(range(25, 35))
        assert await store.last_event("r") == 34
        await store.append("r", entry(1, 35, end=completed()))
        await store.trim(retention)
        assert await numbers(store, "r", 30) == [31, 32, 33, 34, 35]
        await store.stop()


async def test_a_store_that_can_be_written_to_is_healthy(store: Store) -> None:
    assert await store.healthy() is None

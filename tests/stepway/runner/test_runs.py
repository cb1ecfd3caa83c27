"""Runs on a store: every kind of workflow to its end, and what people do to runs meanwhile."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pydantic_core import from_json
from workflows import Workflow
from workflows.events import HumanResponseEvent, StartEvent

from stepway.runner.api.envelopes import InvalidEvent
from stepway.runner.config import Config
from stepway.runner.runs import InvalidContext, Runs, UnknownWorkflow
from stepway.runner.store import AlreadyOver, AlreadyRunning, Handler, UnknownHandler
from tests.stepway.runner import flows
from tests.stepway.runner.stores import KINDS, opened

Serve = Callable[..., Awaitable[Runs]]
LONG = 30.0


@pytest.fixture(params=KINDS)
async def serve(request: pytest.FixtureRequest) -> AsyncIterator[Serve]:
    """Starts a server's runs: `await serve(name=workflow, …, config=Config(…))`."""
    async with opened(request.param) as new_store:
        started: list[Runs] = []

        async def serve(config: Config = Config(), **workflows: Workflow) -> Runs:
            runs = Runs(new_store(), config)
            for name, workflow in workflows.items():
                runs.add(name, workflow, [HumanResponseEvent] if isinstance(workflow, flows.Asks) else [])
            await runs.start_up()
            started.append(runs)
            return runs

        yield serve
        for runs in started:
            await runs.shut_down(0)


async def run(runs: Runs, name: str, /, event: StartEvent | None = None, **given: Any) -> Handler:
    handler = await runs.start(name, start_event=event or StartEvent(**given))
    return await runs.finished(handler, LONG)


async def result(runs: Runs, name: str, /, event: StartEvent | None = None, **given: Any) -> Any:
    handler = await run(runs, name, event, **given)
    assert handler.status == "completed", handler.error
    assert handler.result is not None
    return handler.result["value"].get("result", handler.result["value"])


async def stream(runs: Runs, handler: Handler, *, internal: bool = False) -> list[dict[str, Any]]:
    found = await runs.store.events(handler.run_id, -1, 1000, internal=internal)
    return [from_json(one.data) for one in found]


async def until(runs: Runs, handler: Handler, kind: str) -> None:
    """Wait for an event of this kind in the run's stream."""
    async with asyncio.timeout(LONG):
        after = -1
        while kind not in [one["type"] for one in await stream(runs, handler)]:
            await runs.store.changed(handler.run_id, after, 1.0)
            after = await runs.store.last_event(handler.run_id)


@pytest.mark.parametrize(
    ("workflow", "given", "wanted"),
    [
        (flows.Hello(), {"name": "Ada"}, "Hello, Ada!"),
        (flows.Squares(), {"count": 6}, 55),
        (flows.Squares(), {"count": 0}, 0),
        (flows.Sends(), {}, [0, 1, 4, 9]),
        (flows.Remembers(), {"word": "a"}, {"times": 1, "words": ["a"]}),
        (flows.Recovers(), {}, "rescued work: KeyError"),
        (flows.Uses(), {}, "hammer"),
        (flows.Threads(), {"n": 5}, 10),
        (flows.Outer(), {}, "Hello, inner!"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Workflow) else None,
)
async def test_every_kind_of_workflow_runs_to_its_end(
    serve: Serve, workflow: Workflow, given: dict[str, Any], wanted: Any
) -> None:
    runs = await serve(flow=workflow)
    assert await result(runs, "flow", **given) == wanted


async def test_start_and_stop_events_of_its_own(serve: Serve) -> None:
    runs = await serve(shop=flows.Shop())
    handler = await run(runs, "shop", flows.Order(item="tea", number=3))
    assert handler.result is not None
    assert handler.result["value"] == {"item": "tea", "price": 7.5}
    assert handler.result["type"] == "Receipt"
    assert handler.result["types"] == ["StopEvent"]
    assert [one["type"] for one in await stream(runs, handler)] == ["Progress", "Progress", "Receipt"]
    assert len(await stream(runs, handler, internal=True)) > 3


async def test_a_retried_step_gets_through(serve: Serve) -> None:
    runs = await serve(flaky=flows.Flaky())
    assert await result(runs, "flaky", key=uuid.uuid4().hex, times=3) == 4


async def test_a_step_that_has_tried_enough_fails_the_run(serve: Serve) -> None:
    runs = await serve(flaky=flows.Flaky(), fails=flows.Fails())
    handler = await run(runs, "flaky", key=uuid.uuid4().hex, times=99)
    assert (handler.status, handler.result) == ("failed", None)
    assert handler.error == "no 5"
    handler = await run(runs, "fails", message="")
    assert (handler.status, handler.error) == ("failed", "ValueError")
    assert (await stream(runs, handler))[-1]["type"] == "WorkflowFailedEvent"


async def test_a_workflow_times_out(serve: Serve) -> None:
    runs = await serve(sleeps=flows.Sleeps(timeout=0.05), asks=flows.Asks(timeout=0.2))
    handler = await run(runs, "sleeps")
    assert (handler.status, handler.error) == ("failed", "Workflow timed out after 0.05s")
    assert (await stream(runs, handler))[-1]["type"] == "WorkflowTimedOutEvent"
    assert (await run(runs, "asks")).error == "Workflow timed out after 0.2s"


async def test_the_server_bounds_a_runs_time(serve: Serve) -> None:
    runs = await serve(Config(max_run_time=0.1), sleeps=flows.Sleeps(timeout=None))
    handler = await run(runs, "sleeps")
    assert handler.status == "failed"
    assert "longer than this server allows" in (handler.error or "")


@pytest.mark.parametrize("workflow", [flows.Asks(timeout=None), flows.Talks(timeout=None)], ids=["waiter", "step"])
async def test_a_person_answers(serve: Serve, workflow: Workflow) -> None:
    runs = await serve(asks=workflow)
    handler = await runs.start("asks", start_event=StartEvent(topic="tea"))
    await until(runs, handler, "InputRequiredEvent")
    await runs.send(handler.handler_id, HumanResponseEvent(response="yes"), None)
    ended = await runs.finished(handler, LONG)
    assert ended.status == "completed"
    assert "yes" in str(ended.result)
    with pytest.raises(AlreadyOver):
        await runs.send(handler.handler_id, HumanResponseEvent(response="again"), None)


async def test_an_event_is_sent_to_a_step_by_name(serve: Serve) -> None:
    runs = await serve(talks=flows.Talks(timeout=None))
    handler = await runs.start("talks", start_event=StartEvent())
    await until(runs, handler, "InputRequiredEvent")
    for step in ("nowhere", "ask"):
        with pytest.raises(InvalidEvent, match=step):
            await runs.send(handler.handler_id, HumanResponseEvent(response="x"), step)
    await runs.send(handler.handler_id, HumanResponseEvent(response="Bob"), "answer")
    assert (await runs.finished(handler, LONG)).status == "completed"


async def test_a_handler_goes_on_with_what_its_last_run_left(serve: Serve) -> None:
    runs = await serve(remembers=flows.Remembers())
    first = await run(runs, "remembers", word="a")
    again = await runs.start("remembers", start_event=StartEvent(word="b"), handler_id=first.handler_id)
    assert again.handler_id == first.handler_id
    assert again.run_id != first.run_id
    ended = await runs.finished(again, LONG)
    assert ended.result is not None
    assert ended.result["value"]["result"] == {"times": 2, "words": ["a", "b"]}
    assert (await runs.get(first.handler_id)).result == ended.result


async def test_a_handler_runs_once_at_a_time(serve: Serve) -> None:
    runs = await serve(sleeps=flows.Sleeps())
    handler = await runs.start("sleeps", start_event=StartEvent(), handler_id="mine")
    with pytest.raises(AlreadyRunning):
        await runs.start("sleeps", start_event=StartEvent(), handler_id="mine")
    both = await asyncio.gather(
        *[runs.start("sleeps", start_event=StartEvent(), handler_id="new") for _ in range(5)], return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in both) == ["AlreadyRunning"] * 4 + ["Handler"]
    assert await runs.cancel(handler.handler_id, purge=False) == "cancelled"


async def test_a_context_is_taken_and_a_wrong_one_refused(serve: Serve) -> None:
    runs = await serve(remembers=flows.Remembers())
    with pytest.raises(InvalidContext):
        await runs.start("remembers", start_event=StartEvent(), context={"version": 1, "workers": 7})
    with pytest.raises(InvalidContext):
        await runs.start(
            "remembers", start_event=StartEvent(), context={"version": 1, "state": {"store_type": "elsewhere"}}
        )
    evil = {
        "store_type": "in_memory",
        "state_data": '{"__is_pydantic": true, "value": {}, "qualified_name": "os.path"}',
    }
    with pytest.raises(InvalidContext):
        await runs.start("remembers", start_event=StartEvent(), context={"version": 1, "state": evil})


async def test_unknown_names(serve: Serve) -> None:
    runs = await serve(hello=flows.Hello())
    with pytest.raises(UnknownWorkflow):
        await runs.start("nothing", start_event=StartEvent())
    for asked in (runs.get("x"), runs.cancel("x", purge=True), runs.send("x", StartEvent(), None)):
        with pytest.raises(UnknownHandler):
            await asked


async def test_a_run_is_cancelled(serve: Serve) -> None:
    runs = await serve(sleeps=flows.Sleeps(timeout=None))
    handler = await runs.start("sleeps", start_event=StartEvent())
    await until(runs, handler, "Progress")
    assert await runs.cancel(handler.handler_id, purge=False) == "cancelled"
    ended = await runs.get(handler.handler_id)
    assert (ended.status, ended.error) == ("cancelled", None)
    assert ended.completed_at is not None
    assert [one["type"] for one in await stream(runs, handler)] == ["Progress", "WorkflowCancelledEvent"]
    with pytest.raises(UnknownHandler):
        await runs.cancel(handler.handler_id, purge=False)
    assert await runs.cancel(handler.handler_id, purge=True) == "deleted"
    with pytest.raises(UnknownHandler):
        await runs.get(handler.handler_id)


async def test_a_step_that_does_not_let_itself_be_cancelled(serve: Serve) -> None:
    runs = await serve(Config(drain=0.2), stubborn=flows.Stubborn(timeout=None))
    handler = await runs.start("stubborn", start_event=StartEvent(seconds=1.5))
    await until(runs, handler, "Progress")
    assert await runs.cancel(handler.handler_id, purge=False) == "cancelled"
    assert (await runs.get(handler.handler_id)).status == "cancelled"


async def test_what_cannot_be_stored_is_a_clear_error_and_the_run_is_kept(serve: Serve) -> None:
    runs = await serve(result=flows.OpaqueResult(), middle=flows.OpaqueMiddle(), state=flows.OpaqueState())
    handler = await run(runs, "result")
    assert handler.status == "failed"
    assert "StopEvent" in (handler.error or "")
    assert (await runs.get(handler.handler_id)).status == "failed"
    middle, state = await run(runs, "middle"), await run(runs, "state")
    if runs.store.durable:
        assert (middle.status, state.status) == ("failed", "failed")
        assert "Step 'give' gave Holds" in (middle.error or "")
        assert "ctx.store" in (state.error or "")
        assert "thing" in (state.error or "")
    else:
        assert (middle.status, state.status) == ("completed", "completed")
        assert "UnserialisableEvent" in [one["type"] for one in await stream(runs, middle)]


async def test_big_payloads_and_all_of_unicode(serve: Serve) -> None:
    runs = await serve(big=flows.Big(timeout=None))
    text = "\x00\x01é漢𝄞 \\u0000 '\"{{}}" + "x" * 2_000_000
    assert await result(runs, "big", text=text) == [text, text]


async def test_an_event_may_be_too_large(serve: Serve) -> None:
    runs = await serve(Config(max_event=1000), big=flows.Big(timeout=None))
    handler = await run(runs, "big", text="x" * 2000)
    assert handler.status == "failed"
    assert "StopEvent is too large" in (handler.error or "")


async def test_json_that_looks_like_a_class_is_data(serve: Serve) -> None:
    runs = await serve(big=flows.Big(timeout=None))
    evil = {"__is_pydantic": True, "qualified_name": "os.path.Evil", "value": {"x": 1}}
    assert await result(runs, "big", text=evil) == [evil, evil]


async def test_runs_beyond_the_places_wait_in_turn(serve: Serve) -> None:
    runs = await serve(Config(concurrent_runs=2), sleeps=flows.Sleeps(timeout=None), hello=flows.Hello())
    first = [await runs.start("sleeps", start_event=StartEvent(seconds=60)) for _ in range(2)]
    waiting = [await runs.start("sleeps", start_event=StartEvent(seconds=0)) for _ in range(3)]
    assert await result(runs, "hello") == "Hello, World!"
    assert [(await runs.get(one.handler_id)).status for one in waiting] == ["running"] * 3
    assert [await stream(runs, one, internal=True) for one in waiting] == [[], [], []]
    assert await runs.cancel(waiting[1].handler_id, purge=False) == "cancelled"
    assert [one["type"] for one in await stream(runs, waiting[1])] == ["WorkflowCancelledEvent"]
    await runs.cancel(first[0].handler_id, purge=False)
    ended = [await runs.finished(waiting[0], LONG), await runs.finished(waiting[2], LONG)]
    assert [one.status for one in ended] == ["completed", "completed"]
    assert ended[0].completed_at is not None
    assert ended[1].completed_at is not None
    assert ended[0].completed_at <= ended[1].completed_at


async def test_a_workflows_own_bound_holds(serve: Serve) -> None:
    runs = await serve(sleeps=flows.Sleeps(timeout=None, num_concurrent_runs=1))
    held = await runs.start("sleeps", start_event=StartEvent(seconds=60))
    waits = await runs.start("sleeps", start_event=StartEvent(seconds=0))
    assert await stream(runs, waits) == []
    await runs.cancel(held.handler_id, purge=False)
    assert (await runs.finished(waits, LONG)).status == "completed"


async def test_lists(serve: Serve) -> None:
    runs = await serve(hello=flows.Hello(), fails=flows.Fails(), sleeps=flows.Sleeps())
    made = [(await run(runs, name)).handler_id for name in ("hello", "fails", "hello", "hello")]
    made.append((await runs.start("sleeps", start_event=StartEvent())).handler_id)
    everything, end = await runs.page(None, None, None, None)
    assert ([one.handler_id for one in everything], end) == (made[::-1], None)
    page, cursor = await runs.page(None, None, 2, None)
    rest, end = await runs.page(None, None, 10, cursor)
    assert ([one.handler_id for one in [*page, *rest]], end) == (made[::-1], None)
    assert len((await runs.page(["completed"], None, None, None))[0]) == 3
    assert len((await runs.page(["running", "failed"], None, None, None))[0]) == 2
    assert len((await runs.page(None, ["hello", "sleeps"], None, None))[0]) == 4
    assert (await runs.page([], None, None, None))[0] == []
    with pytest.raises(ValueError):
        await runs.page(None, None, 2, "not a cursor")


async def test_many_at_once_mix_nothing_up(serve: Serve) -> None:
    runs = await serve(hello=flows.Hello(), shop=flows.Shop(), squares=flows.Squares())

    async def one(n: int) -> None:
        assert await result(runs, "hello", name=str(n)) == f"Hello, {n}!"
        handler = await run(runs, "shop", flows.Order(item="tea", number=n % 7 + 1))
        assert handler.result is not None
        assert handler.result["value"]["price"] == (n % 7 + 1) * 2.5
        found = await runs.store.events(handler.run_id, -1, 1000, internal=True)
        assert [event.seq for event in found] == list(range(len(found)))

    await asyncio.gather(*[one(n) for n in range(60)])


async def test_a_run_that_is_purged_stops(serve: Serve) -> None:
    runs = await serve(sleeps=flows.Sleeps(timeout=None))
    handler = await runs.start("sleeps", start_event=StartEvent())
    await until(runs, handler, "Progress")
    assert await runs.cancel(handler.handler_id, purge=True) == "deleted"
    assert (await runs.page(None, None, None, None))[0] == []


async def test_an_event_that_the_workflow_does_not_declare_is_refused(serve: Serve) -> None:
    runs = await serve(asks=flows.Asks(timeout=None))
    handler = await runs.start("asks", start_event=StartEvent())
    await until(runs, handler, "InputRequiredEvent")
    with pytest.raises(InvalidEvent, match="Part"):
        await runs.send(handler.handler_id, flows.Part(n=1), None)
    await runs.send(handler.handler_id, flows.Middle(), "wait")
    await runs.send(handler.handler_id, HumanResponseEvent(response="ok"), None)
    assert (await runs.finished(handler, LONG)).status == "completed"

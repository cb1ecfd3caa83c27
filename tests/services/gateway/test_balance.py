"""Which worker is chosen, who waits, and which worker is left alone."""

import asyncio
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from services.gateway.balance import Balancer, Lease
from services.gateway.limits import Limits
from services.gateway.table import Route, RouteTable, Worker
from shared.errors import Problem

ENDPOINT = uuid4()


def route(*workers: str, capacity: int = 2, port: int = 1, state: str = "running", generation: int = 0) -> Route:
    rows = tuple(Worker(id=name, url=f"http://127.0.0.1:{port}", capacity=capacity) for name in workers)
    return Route(
        endpoint_id=ENDPOINT,
        project_id=UUID(int=1),
        model_name="m",
        served_name="m",
        state=state,
        workers=rows,
        generation=generation,
    )


class Setting:
    def __init__(self, first: Route, limits: Limits | None = None) -> None:
        self.now = 100.0
        self.table = RouteTable()
        self.table.replace(ENDPOINT, first)
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        self.balancer = Balancer(self.table, limits or Limits(), clock)

    async def take(self, avoid: frozenset[str] = frozenset()) -> Lease:
        return await self.balancer.acquire(ENDPOINT, avoid)

    async def names(self, count: int) -> list[str]:
        return [(await self.take()).worker.id for _ in range(count)]

    async def waiting(self, count: int, avoid: frozenset[str] = frozenset()) -> list[asyncio.Task[Lease]]:
        tasks = [asyncio.create_task(self.take(avoid)) for _ in range(count)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        return tasks


async def test_equals_take_turns() -> None:
    setting = Setting(route("a", "b", "c", capacity=10))
    assert await setting.names(6) == ["a", "b", "c", "a", "b", "c"]


async def test_equals_take_turns_when_each_request_ends_before_the_next() -> None:
    setting = Setting(route("a", "b", "c"))
    names = []
    for _ in range(6):
        with await setting.take() as lease:
            names.append(lease.worker.id)
    assert names == ["a", "b", "c", "a", "b", "c"]


async def test_the_least_busy_is_chosen() -> None:
    setting = Setting(route("a", "b", capacity=10))
    held = [await setting.take() for _ in range(4)]
    for lease in held:
        if lease.worker.id == "b":
            lease.release()
    assert await setting.names(2) == ["b", "b"]


async def test_a_lease_is_given_back_once() -> None:
    setting = Setting(route("a", capacity=1), Limits(queue_length=0))
    lease = await setting.take()
    lease.release()
    lease.release()
    await setting.take()
    with pytest.raises(Problem, match="endpoint_busy"):
        await setting.take()


async def test_those_who_wait_are_served_in_order() -> None:
    setting = Setting(route("a", capacity=1))
    lease = await setting.take()
    first, second = await setting.waiting(2)
    lease.release()
    held = await first
    assert not second.done()
    held.release()
    assert (await second).worker.id == "a"


async def test_waiting_is_bounded_in_number_and_time() -> None:
    setting = Setting(route("a", capacity=1), Limits(queue_length=1, queue_seconds=0.02))
    await setting.take()
    (waiting,) = await setting.waiting(1)
    with pytest.raises(Problem, match=r"endpoint_busy.*as many requests as may wait") as caught:
        await setting.take()
    assert caught.value.headers == {"Retry-After": "1"}
    with pytest.raises(Problem, match=r"endpoint_busy.*within 0\.02 s"):
        await waiting


async def test_one_who_leaves_in_the_moment_of_being_served_gives_the_place_back() -> None:
    setting = Setting(route("a", capacity=1))
    lease = await setting.take()
    first, second = await setting.waiting(2)
    lease.release()
    first.cancel()
    assert (await asyncio.wait_for(second, 1)).worker.id == "a"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_new_worker_serves_those_who_wait() -> None:
    setting = Setting(route("a", capacity=1))
    await setting.take()
    (waiting,) = await setting.waiting(1)
    setting.table.replace(ENDPOINT, route("a", "b", capacity=1))
    assert (await waiting).worker.id == "b"


async def test_more_capacity_serves_those_who_wait() -> None:
    setting = Setting(route("a", capacity=1))
    await setting.take()
    (waiting,) = await setting.waiting(1)
    setting.table.replace(ENDPOINT, route("a", capacity=2))
    assert (await waiting).worker.id == "a"


async def test_those_who_wait_hear_that_the_endpoint_has_gone() -> None:
    setting = Setting(route("a", capacity=1))
    lease = await setting.take()
    (waiting,) = await setting.waiting(1)
    setting.table.remove(ENDPOINT)
    with pytest.raises(Problem, match="endpoint_unavailable"):
        await waiting
    with pytest.raises(Problem, match="endpoint_unavailable"):
        await setting.take()
    lease.release()


@pytest.mark.parametrize("state", ["stopped", "deleting", "deleted"])
async def test_a_closed_endpoint_serves_nobody(state: str) -> None:
    setting = Setting(route("a", state=state))
    with pytest.raises(Problem, match=f"The endpoint is {state}"):
        await setting.take()


async def test_a_hard_failure_takes_a_worker_out_for_longer_each_time() -> None:
    setting = Setting(route("a", "b", capacity=99), Limits(out_seconds=2, out_max_seconds=5))
    for seconds in (2, 4, 5, 5):
        with await setting.take(frozenset({"b"})) as lease:
            assert lease.worker.id == "a"
            lease.failed(hard=True)
        setting.now += seconds - 0.1
        assert set(await setting.names(3)) == {"b"}
        setting.now += 0.1


async def test_a_worker_that_failed_is_tried_with_one_request_and_then_trusted() -> None:
    setting = Setting(route("a", "b", capacity=9))
    with await setting.take(frozenset({"b"})) as lease:
        lease.failed(hard=True)
    setting.now += 3
    trial = await setting.take(frozenset({"b"}))
    assert trial.worker.id == "a"
    assert set(await setting.names(4)) == {"b"}
    trial.succeeded()
    assert await setting.names(3) == ["a"] * 3


async def test_the_many_requests_that_one_crash_ends_count_once() -> None:
    setting = Setting(route("a", capacity=20), Limits(out_seconds=2))
    for lease in [await setting.take() for _ in range(20)]:
        lease.failed(hard=False)
        lease.release()
    setting.now += 2
    assert await setting.names(1) == ["a"]


async def test_a_soft_failure_takes_out_from_the_second_on() -> None:
    setting = Setting(route("a"))
    with await setting.take() as lease:
        lease.failed(hard=False)
    with await setting.take() as lease:
        lease.failed(hard=False)
    with pytest.raises(Problem, match="None of the endpoint's workers answers") as caught:
        await setting.take()
    assert caught.value.headers == {"Retry-After": "2"}


async def test_a_success_between_failures_counts() -> None:
    setting = Setting(route("a"))
    for _ in range(3):
        with await setting.take() as lease:
            lease.failed(hard=False)
        with await setting.take() as lease:
            lease.succeeded()
    assert await setting.names(1) == ["a"]


async def test_workers_to_avoid_are_a_last_resort() -> None:
    setting = Setting(route("a", "b", capacity=1))
    assert (await setting.take(frozenset({"a"}))).worker.id == "b"
    (waiting,) = await setting.waiting(1, frozenset({"a"}))  # b is well but full: it is waited for
    assert (await setting.take()).worker.id == "a"  # and does not stand in the way of others
    waiting.cancel()
    alone = Setting(route("a"))
    assert (await alone.take(frozenset({"a"}))).worker.id == "a"


async def test_those_who_wait_get_a_worker_that_has_recovered() -> None:
    setting = Setting(route("a", "b", capacity=1), Limits(out_seconds=0.02))
    with await setting.take() as lease:
        lease.failed(hard=True)
    assert (await setting.take()).worker.id == "b"
    (waiting,) = await setting.waiting(1)
    setting.now += 1
    assert (await asyncio.wait_for(waiting, 1)).worker.id == "a"


async def test_a_republished_worker_keeps_its_count_and_a_moved_one_its_good_name() -> None:
    setting = Setting(route("a", capacity=1), Limits(queue_length=0))
    held = await setting.take()
    setting.table.replace(ENDPOINT, route("a", capacity=1))
    with pytest.raises(Problem, match="endpoint_busy"):
        await setting.take()
    held.failed(hard=True)
    held.release()
    with pytest.raises(Problem, match="endpoint_unavailable"):
        await setting.take()
    setting.table.replace(ENDPOINT, route("a", capacity=1, port=2))
    assert (await setting.take()).worker.url == "http://127.0.0.1:2"

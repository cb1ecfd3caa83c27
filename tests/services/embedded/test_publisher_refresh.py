"""Looks at the app's routes that somebody asks for: shared, never too early, and never undone by an older answer."""

import asyncio
from uuid import UUID, uuid4

import pytest

from services.assembly.publisher import Publisher
from services.cluster.sites.clients import Clients
from services.gateway.table import RouteTable
from shared.contracts.gateway import PublishedRoute, PublishedTable
from shared.security.kubeconfig_server import ServerPolicy


class Source:
    """The app's side, of which a test gives each answer. `asked` has what was seen, and where the answer goes."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, asyncio.Future[PublishedTable]]] = []
        self.more = asyncio.Condition()

    async def routes(self, seen: str | None) -> PublishedTable:
        answer: asyncio.Future[PublishedTable] = asyncio.get_running_loop().create_future()
        async with self.more:
            self.asked.append((seen, answer))
            self.more.notify_all()
        return await answer

    async def until_asked(self, count: int) -> None:
        async with asyncio.timeout(10), self.more:
            await self.more.wait_for(lambda: len(self.asked) >= count)

    def answer(self, number: int, *endpoints: UUID) -> None:
        self.asked[number][1].set_result(table(*endpoints))


def table(*endpoints: UUID) -> PublishedTable:
    routes = [
        PublishedRoute(
            endpoint_id=one, project_id=one, cluster_id=one, name="smol", slug="smol", state="running", key="k"
        )
        for one in endpoints
    ]
    return PublishedTable(version=",".join(map(str, endpoints)), changed=True, routes=routes)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def routes() -> RouteTable:
    return RouteTable()


@pytest.fixture
def publisher(source: Source, routes: RouteTable) -> Publisher:
    return Publisher(source, routes, Clients(), ServerPolicy())


async def test_those_who_ask_at_once_share_an_answer(source: Source, publisher: Publisher, routes: RouteTable) -> None:
    endpoint = uuid4()
    both = [asyncio.create_task(publisher.refresh()) for _ in range(3)]
    await source.until_asked(1)
    late = [asyncio.create_task(publisher.refresh()) for _ in range(3)]  # the question may have come before theirs
    source.answer(0)
    await asyncio.gather(*both)
    await source.until_asked(2)
    source.answer(1, endpoint)
    await asyncio.gather(*late)
    assert routes.get(endpoint) is not None
    assert [seen for seen, _ in source.asked] == [None, None]


async def test_an_older_answer_undoes_nothing(source: Source, publisher: Publisher, routes: RouteTable) -> None:
    endpoint = uuid4()
    following = asyncio.create_task(publisher.run())
    try:
        await source.until_asked(1)
        looking = asyncio.create_task(publisher.refresh())
        await source.until_asked(2)
        source.answer(1, endpoint)
        await looking
        source.answer(0)
        await source.until_asked(3)
        assert routes.get(endpoint) is not None
        assert source.asked[2][0] == str(endpoint)  # what has been passed over is asked for again
    finally:
        following.cancel()


async def test_a_fault_is_of_those_who_asked(source: Source, publisher: Publisher, routes: RouteTable) -> None:
    looking = asyncio.create_task(publisher.refresh())
    await source.until_asked(1)
    source.asked[0][1].set_exception(OSError("away"))
    with pytest.raises(OSError, match="away"):
        await looking
    again = asyncio.create_task(publisher.refresh())
    await source.until_asked(2)
    source.answer(1, endpoint := uuid4())
    await again
    assert routes.get(endpoint) is not None

"""A whole Stepway per module, a hub beside it, and what the wizards' tests make on it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.contract.running import Client, Stepway
from tests.hub import Hub


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
async def stepway(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stepway]:
    async with Stepway(
        tmp_path_factory.mktemp("stepway"), hf_endpoint=hub.url, allow_loopback_clusters=True
    ) as stepway:
        yield stepway


@pytest.fixture
def client(stepway: Stepway) -> Client:
    return stepway.client

"""Fixtures of tasks: a world of the test's own, and servers on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.openai_server import OpenAIServer
from tests.services.flow.world import World
from tests.serving import FileServer


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "objects")


@pytest.fixture
def web(world: World) -> Iterator[FileServer]:
    """A web server that the operator trusts."""
    with FileServer() as server:
        world.trust(server.port)
        yield server


@pytest.fixture
def openai(world: World) -> Iterator[OpenAIServer]:
    """The installation's default provider."""
    with OpenAIServer() as server:
        world.openai = server.base_url
        world.rows.key = server.key
        yield server

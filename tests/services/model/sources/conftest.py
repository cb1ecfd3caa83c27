"""What the tests of model sources share: an object store, a context, servers."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from services.model.sources.base import SourceContext
from shared.contracts.models import ImportSpec, ModelFile, Source
from shared.objects import DirectoryStore
from shared.security.addresses import AddressPolicy
from tests.hub import Hub
from tests.serving import FileServer

GIB = 1024**3
MakeContext = Callable[..., SourceContext]


@pytest.fixture
def objects(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "objects")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def files() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


@pytest.fixture
def context(objects: DirectoryStore) -> MakeContext:
    """A context for this machine; any field may be given."""

    def make(**given: object) -> SourceContext:
        fields: dict[str, object] = {
            "objects": objects,
            "policy": AddressPolicy(allow_private=True),
            "hf_endpoint": "http://127.0.0.1:9",
            "roots": (),
            "max_bytes": GIB,
            "claim": claim_nothing,
        }
        return SourceContext(**{**fields, **given})  # type: ignore[arg-type]  # fields by name

    return make


async def claim_nothing(files: Sequence[ModelFile], manifest: str | None) -> None:
    """For a store from which nothing is freed."""


def spec(source: Source, uri: str, revision: str | None = None) -> ImportSpec:
    return ImportSpec(model_id=uuid4(), project_id=uuid4(), source=source, uri=uri, revision=revision)


async def bytes_of(objects: DirectoryStore, sha256: str) -> bytes:
    return b"".join([chunk async for chunk in objects.read(f"blobs/{sha256[:2]}/{sha256}")])

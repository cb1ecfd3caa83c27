"""The registry names every source, and the folder has a file for each."""

from pathlib import Path

from services.model import sources
from services.model.sources.registry import SOURCES, source_for
from shared.contracts.models import Source


def test_registry_folder_and_kinds_agree() -> None:
    folder = Path(sources.__file__).parent
    modules = {source.kind.value: Path(str(type(source).__module__).rsplit(".", 1)[-1]).name for source in SOURCES}
    assert modules == {kind.value: kind.value for kind in Source}
    assert {path.stem for path in folder.glob("*.py")} - {"__init__", "base", "registry", "uris"} == set(modules)
    assert all(source_for(kind).kind is kind for kind in Source)

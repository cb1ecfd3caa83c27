"""The folder of wizard types and the registry say the same; a type brings all that the engine needs of it."""

import importlib
import pkgutil
from pathlib import Path

import pytest

from services.app import references
from services.app.wizards import forms, registry, types
from services.app.wizards.contract import Wizard

WIZARDS = list(registry.WIZARDS.values())


def test_folder_and_registry_agree() -> None:
    found: set[type[Wizard]] = set()
    for module in pkgutil.iter_modules(types.__path__):
        loaded = importlib.import_module(f"{types.__name__}.{module.name}")
        own = [one for one in vars(loaded).values() if isinstance(one, type) and one.__module__ == loaded.__name__]
        wizards = [one for one in own if issubclass(one, Wizard)]
        assert len(wizards) == 1, module.name
        found.update(wizards)
    assert {type(one) for one in WIZARDS} == found
    assert all(name == wizard.type for name, wizard in registry.WIZARDS.items())


def test_no_other_file_names_a_wizard_but_the_one_that_recommends_for_it() -> None:
    """Adding a wizard touches its own module and one line of the registry."""
    app = Path(registry.__file__).parents[1]
    naming: dict[str, set[str]] = {}
    for file in app.rglob("*.py"):
        if file.parent.name != "types":
            naming[file.relative_to(app).as_posix()] = {
                name for name in registry.WIZARDS if f'"{name}"' in file.read_text()
            }
    assert {file: names for file, names in naming.items() if names} == {"clusters/recommend.py": {"model_deployment"}}


@pytest.mark.parametrize("wizard", WIZARDS, ids=lambda wizard: wizard.type)
def test_a_type_is_whole(wizard: Wizard) -> None:
    keys = [step.key for step in wizard.steps]
    assert len(set(keys)) == len(keys)
    fields = [name for step in wizard.steps if step.model for name in step.model.model_fields]
    assert len(set(fields)) == len(fields), "a field belongs to one step"
    assert not set(fields) & set(forms.Control.model_fields)
    for variant in wizard.variants:
        assert set(variant.steps) <= set(keys)
        for name in variant.required:
            assert wizard.step_of(name, variant) is not None
    assert wizard.variants[-1].when == {}
    assert set(wizard.references) <= set(fields)
    assert set(wizard.references.values()) <= references.KINDS.keys()
    assert {name for name in fields if name.endswith("_id")} == set(wizard.references)
    assert {"type", "id", "name", "href"} <= wizard.result_schema["properties"].keys()
    assert set(wizard.files) <= set(fields)

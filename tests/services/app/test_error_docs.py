"""The page of error codes and the registry say the same."""

from pathlib import Path

from services.app import error_docs
from shared.error_codes import CODES

ROOT = Path(__file__).parents[3]


def test_the_page_in_docs_is_what_the_registry_makes() -> None:
    assert (ROOT / "docs" / "errors.md").read_text() == error_docs.markdown()


def test_every_code_has_an_anchor_and_a_remedy() -> None:
    page = error_docs.page()
    for name, code in CODES.items():
        assert f'id="{name}"' in page
        assert code.remedy.endswith(".")
        assert 400 <= code.status < 600

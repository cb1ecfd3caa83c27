"""The page of error codes and the registry say the same."""

import ast
from pathlib import Path

from services.app import error_docs
from shared.error_codes import CODES
from shared.job_error_codes import JOB_CODES

ROOT = Path(__file__).parents[3]


def test_the_page_in_docs_is_what_the_registry_makes() -> None:
    assert (ROOT / "docs" / "errors.md").read_text() == error_docs.markdown()


def test_every_code_has_an_anchor_and_a_remedy() -> None:
    page = error_docs.page()
    for name, code in CODES.items():
        assert f'id="{name}"' in page
        assert code.remedy.endswith(".")
        assert 400 <= code.status < 600


def _raised() -> set[str]:
    """The codes with which steps of jobs end, as the sources name them."""
    sources = [file for folder in ("services", "shared") for file in (ROOT / folder).rglob("*.py")]
    calls = (node for file in sources for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    return {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in ("Permanent", "Retry") and call.args
        and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    }  # fmt: skip


def test_the_codes_of_jobs_are_on_the_page() -> None:
    raised = _raised()
    assert len(raised) > 30
    assert raised - CODES.keys() - JOB_CODES.keys() == set()
    page = error_docs.page()
    for name, code in JOB_CODES.items():
        assert page.count(f'id="{name}"') == 1
        assert code.remedy.endswith(".")
        assert not code.title.endswith(".")

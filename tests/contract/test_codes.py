"""Every code that a refusal names is one of the registry's: another would make the refusal itself a fault."""

import ast
from collections.abc import Iterator
from pathlib import Path

from services.app import db_problems
from shared.error_codes import CODES

ROOT = Path(__file__).parents[2]


def _raised() -> Iterator[tuple[str, str]]:
    for folder in ("services", "shared"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
                    code = node.args[0] if node.args else None
                    if isinstance(code, ast.Constant):
                        yield str(code.value), f"{file.relative_to(ROOT)}:{node.lineno}"


def test_every_code_that_is_raised_is_in_the_registry() -> None:
    raised = list(_raised())
    assert len(raised) > 50
    assert [(code, where) for code, where in raised if code not in CODES] == []
    assert {code for code, _, _ in db_problems._MEANINGS.values()} <= CODES.keys()

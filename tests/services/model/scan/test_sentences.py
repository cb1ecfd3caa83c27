"""What a scan says of a file that it cannot judge is one sentence, however the library's own message ends."""

import pytest

from services.model.scan import scanner
from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind


class Refusing:
    NAME = "refusing"
    KINDS: frozenset[Kind] = frozenset()

    def __init__(self, message: str) -> None:
        self._message = message

    def look(self, item: Item, findings: Findings) -> None:
        raise Unreadable(self._message)


@pytest.mark.parametrize(
    "message", ["it is broken: no header", "it is broken: no header.", "it is broken: no header.."]
)
def test_a_reason_ends_with_one_stop(message: str) -> None:
    findings = Findings(inspect=lambda item: None)
    scanner._run(Refusing(message), Item.of_bytes("a.bin", "a.bin", b"", 0), findings)
    assert [error.message for error in findings.errors] == ["This file could not be judged: it is broken: no header."]

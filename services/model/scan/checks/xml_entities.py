"""XML, PMML, SVG and HTML: entities that read files or grow without end, and scripts."""

import re

from services.model.scan import limits
from services.model.scan.findings import Findings
from services.model.scan.item import Item
from services.model.scan.kinds import Kind
from shared.contracts.models import Severity

NAME = "xml_entities"
KINDS = frozenset((Kind.XML,))

_SIGNS: tuple[tuple[re.Pattern[str], Severity, str, str], ...] = (
    (re.compile(r"<!ENTITY\s[^>]*\b(SYSTEM|PUBLIC)\b"), "high", "An entity is read from elsewhere", "Files or addresses."),
    (re.compile(r"<!ENTITY\s"), "medium", "The document defines entities", "They may grow without end when read."),
    (re.compile(r"<!DOCTYPE\s+(?!html)[^>\[]*\b(SYSTEM|PUBLIC)\b(?![^>]*(www\.w3\.org|dmg\.org))"), "medium",
     "The document's type is read from elsewhere", "A reader may open a file or an address for it."),
    (re.compile(r"<(\w+:)?include\s[^>]*href", re.I), "high", "The document includes another", "By XInclude."),
    (re.compile(r"<(\w+:)?script\b|\bon(load|error|click)\s*=|javascript:", re.I), "medium",
     "The document holds a script", "It runs where the document is shown."),
)  # fmt: skip


def look(item: Item, findings: Findings) -> None:
    data = item.whole(limits.MAX_TEXT)
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = data.decode("utf-16" if wide else "utf-8", "replace")
    for sign, severity, title, description in _SIGNS:
        if sign.search(text):
            findings.issue(item, NAME, severity, title, description)

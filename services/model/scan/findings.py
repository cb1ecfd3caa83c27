"""Collects what the checks of one file find, and lets a check hand on what it unpacked."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from services.model.scan import limits
from services.model.scan.item import Item
from shared.contracts.models import ScanError, ScanIssue, Severity


class Unreadable(Exception):
    """A check cannot judge the file: it is damaged, encrypted, too large. The message ends a sentence on it."""


@dataclass
class Findings:
    """`inspect` looks into an unpacked member with all checks; `budget` is what may still be unpacked, in bytes."""

    inspect: Callable[[Item], None]
    issues: list[ScanIssue] = field(default_factory=list)
    errors: list[ScanError] = field(default_factory=list)
    skipped: str | None = None
    budget: int = limits.MAX_EXPANDED
    members: int = limits.MAX_MEMBERS
    deadline: float = field(default_factory=lambda: time.monotonic() + 3600)
    _seen: set[tuple[str, str, str]] = field(default_factory=set)

    def issue(self, item: Item, check: str, severity: Severity, title: str, description: str) -> None:
        """Report once per item and title. Past the limit only what is worse than `medium` is still taken."""
        key = (item.name, check, title)
        full = len(self.issues) >= limits.MAX_ISSUES_PER_FILE
        if key in self._seen or (full and severity in ("low", "medium")):
            return
        self._seen.add(key)
        self.issues.append(
            ScanIssue(
                title=clean(title),
                severity=severity,
                description=clean(description),
                file=clean(item.name),
                check=check,
            )
        )

    def error(self, item: Item, check: str, message: str) -> None:
        if len(self.errors) < limits.MAX_ISSUES_PER_FILE:
            self.errors.append(ScanError(file=clean(item.name), message=clean(message), check=check))

    def skip(self, item: Item, reason: str) -> None:
        """Say that a file was not looked into. Members of archives are not listed."""
        if item.depth == 0:
            self.skipped = reason

    def spend(self, amount: int, packed: int) -> None:
        """Count what an archive says it unpacks to, before it is unpacked. Unreadable when it is a bomb."""
        if amount > limits.RATIO_FROM and amount > packed * limits.MAX_RATIO:
            raise Unreadable("it unpacks to far more than its size, as a decompression bomb does")
        self.budget -= amount
        self.members -= 1
        if self.budget < 0 or self.members < 0:
            raise Unreadable("it holds more, or unpacks to more, than is looked into")


def clean(text: str) -> str:
    """What a file says, fit for a report: no control characters or lone surrogates, and not without end."""
    text = text.encode("utf-8", "replace").decode()
    text = "".join(char if char.isprintable() else "�" for char in text[:2000])
    return text if len(text) <= 600 else text[:599] + "…"

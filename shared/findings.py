"""What a check of the settings finds: one line each. `services.embedded.check` runs the checks."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` is ok, note (it works, and could be better) or wrong; `remedy` is what to do next. No secrets in either."""

    check: str
    level: str
    message: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Findings:
    """Collects the findings of one check."""

    def __init__(self, check: str) -> None:
        self._check = check
        self.all: list[Finding] = []

    def ok(self, message: str) -> None:
        self.all.append(Finding(self._check, "ok", message))

    def note(self, message: str, remedy: str) -> None:
        self.all.append(Finding(self._check, "note", message, remedy))

    def wrong(self, message: str, remedy: str) -> None:
        self.all.append(Finding(self._check, "wrong", message, remedy))

"""What a bench reports: a measured number, the floor or peer that was measured beside it, and whether its target is met."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


class Skipped(Exception):
    """The bench cannot be run on this machine; why, as a part of a sentence."""


@dataclass(frozen=True, slots=True)
class Figure:
    """`peer` has the unit of `value`. The target bounds their ratio, or their difference; without a peer, the value itself.

    A figure without a bound is for information.
    """

    name: str
    value: float
    unit: str
    peer: float | None = None
    peer_name: str = ""
    at_least: float | None = None
    at_most: float | None = None
    by: Literal["ratio", "difference"] = "ratio"
    note: str = ""

    @property
    def judged(self) -> float:
        """What the target bounds."""
        if self.peer is None:
            return self.value
        if self.by == "difference":
            return self.value - self.peer
        return self.value / self.peer if self.peer else float("inf")

    @property
    def met(self) -> bool | None:
        if self.at_least is None and self.at_most is None:
            return None
        above = self.at_least is None or self.judged >= self.at_least
        return above and (self.at_most is None or self.judged <= self.at_most)

    @property
    def target(self) -> str:
        unit = f" {self.unit}" if self.peer is None or self.by == "difference" else "×"
        parts = [
            f"{sign} {bound:g}{unit}"
            for sign, bound in (("≥", self.at_least), ("≤", self.at_most))
            if bound is not None
        ]
        return " and ".join(parts)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "judged": self.judged, "target": self.target, "met": self.met}


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

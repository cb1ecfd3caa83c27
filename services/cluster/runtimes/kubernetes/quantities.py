"""Kubernetes quantities (`500m`, `128Gi`, `1e3`) as whole numbers. What cannot be read, or is absurd, counts as 0."""

import re
from decimal import Decimal
from typing import Final

_QUANTITY = re.compile(r"(\d{1,24}(?:\.\d{0,12})?|\.\d{1,12})(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,2}))?")
_SUFFIXES: Final = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30),
    "Ti": Decimal(2**40), "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip
_LARGEST = Decimal(2**63 - 1)


def _amount(text: object) -> Decimal:
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) and text.isascii() else None
    if match is None:
        return Decimal(0)
    number, suffix, exponent = match.groups()
    scale = Decimal(10) ** int(exponent) if exponent else _SUFFIXES.get(suffix or "", Decimal(1))
    return min(Decimal(number) * scale, _LARGEST / 1000)


def whole(text: object) -> int:
    """In units: bytes, pods, GPUs. Rounded down."""
    return int(_amount(text))


def thousandths(text: object) -> int:
    """In thousandths: CPU. Rounded down."""
    return int(_amount(text) * 1000)

"""Whether an object still is as we applied it: what others have changed, field by field."""

from collections.abc import Iterator
from typing import Any

from services.cluster.runtimes.kubernetes.quantities import thousandths

_SHOWN = 5
_QUANTITIES = frozenset({"requests", "limits", "sizeLimit"})


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Paths of the fields of `wanted` that `found` has otherwise; fields that only `found` has are the cluster's."""
    paths = []
    for part in ("spec", "data"):
        paths += list(_unlike(wanted.get(part, {}), found.get(part, {}), part))
    return paths[:_SHOWN]


def _unlike(wanted: Any, found: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            yield path
            return
        for key, value in wanted.items():
            if value in ({}, []) and key not in found:
                continue
            yield from _unlike(value, found.get(key), f"{path}.{key}")
    elif isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            yield path
            return
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            name = one.get("name", number) if isinstance(one, dict) else number
            yield from _unlike(one, other, f"{path}[{name}]")
    elif wanted != found and not _same_quantity(wanted, found, path):
        yield path


def _same_quantity(wanted: Any, found: Any, path: str) -> bool:
    if not any(part in _QUANTITIES for part in path.split(".")):
        return False
    return isinstance(wanted, str) and isinstance(found, str) and thousandths(wanted) == thousandths(found) != 0

"""RFC 6570 URI templates up to level 3: what `options.href` of a wizard's description is written in."""

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote


class _Operator(NamedTuple):
    first: str
    separator: str
    named: bool
    if_empty: str
    safe: str


_RESERVED = ":/?#[]@!$&'()*+,;="
_OPERATORS = {
    "": _Operator("", ",", False, "", ""),
    "+": _Operator("", ",", False, "", _RESERVED),
    "#": _Operator("#", ",", False, "", _RESERVED),
    ".": _Operator(".", ".", False, "", ""),
    "/": _Operator("/", "/", False, "", ""),
    ";": _Operator(";", ";", True, "", ""),
    "?": _Operator("?", "&", True, "=", ""),
    "&": _Operator("&", "&", True, "=", ""),
}
_EXPRESSION = re.compile(r"\{([+#./;?&]?)([A-Za-z0-9_.,%]+)\}")


def expand(template: str, values: Mapping[str, object]) -> str:
    """The URI with the values in place. Absent and null values leave nothing behind; a list is joined with commas."""
    return _EXPRESSION.sub(lambda found: _expression(found[1], found[2].split(","), values), template)


def names_in(template: str) -> set[str]:
    """The variables of a template."""
    return {name for found in _EXPRESSION.finditer(template) for name in found[2].split(",")}


def _expression(symbol: str, names: list[str], values: Mapping[str, object]) -> str:
    operator = _OPERATORS[symbol]
    parts = []
    for name in names:
        value = values.get(name)
        if value is None or value == []:
            continue
        items = value if isinstance(value, list) else [value]
        text = ",".join(quote(_text(item), safe="-._~" + operator.safe) for item in items)
        if operator.named:
            text = f"{name}={text}" if text else name + operator.if_empty
        parts.append(text)
    return operator.first + operator.separator.join(parts) if parts else ""


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

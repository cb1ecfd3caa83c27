"""Reads which series and labels a PromQL expression uses. Knows the part of the language that our files are written in."""

import re

TOKEN = re.compile(
    r'(?P<text>"(?:[^"\\]|\\.)*")|(?P<range>\[[^\]]*\])|(?P<number>\d+(?:\.\d+)?)|(?P<name>[a-zA-Z_:][\w:]*)|(?P<sign>=~|!~|!=|==|>=|<=|\S)'
)
FUNCTIONS = frozenset(
    ("sum", "max", "min", "avg", "count", "topk", "rate", "increase", "histogram_quantile", "clamp_min")
)
GROUPING = frozenset(("by", "without", "on", "ignoring", "group_left", "group_right"))
WORDS = frozenset(("and", "or", "unless", "bool", "offset"))


def series(expression: str) -> dict[str, set[str]]:
    """`{series: labels that must be its own}`; labels of a grouping count for every series of the expression.

    ValueError for what this does not know, so that nothing passes unread.
    """
    tokens = [(match.lastgroup, match[0]) for match in TOKEN.finditer(expression)]
    found: dict[str, set[str]] = {}
    grouped: set[str] = set()
    position = 0
    while position < len(tokens):
        kind, token = tokens[position]
        following = tokens[position + 1][1] if position + 1 < len(tokens) else ""
        position += 1
        if kind != "name" or token in WORDS or (token in FUNCTIONS and following in ("(", "by", "without")):
            continue
        if token in GROUPING:
            names, position = _until(tokens, position, "(", ")")
            grouped |= set(names)
        elif following == "(":
            raise ValueError(f"an unknown function: {token}")
        else:
            names, position = _until(tokens, position, "{", "}") if following == "{" else ([], position)
            found.setdefault(token, set()).update(names)
    for opening, closing in ("()", "{}"):
        if sum(token == opening for _, token in tokens) != sum(token == closing for _, token in tokens):
            raise ValueError(f"unbalanced {opening}{closing}: {expression}")
    return {name: labels | grouped for name, labels in found.items()}


def _until(tokens: list[tuple[str | None, str]], position: int, opening: str, closing: str) -> tuple[list[str], int]:
    """The names between two signs, and the position after them."""
    if tokens[position][1] != opening:
        raise ValueError(f"{opening} is missing")
    names = []
    while tokens[position][1] != closing:
        kind, token = tokens[position]
        if kind == "name":
            names.append(token)
        position += 1
    return names, position + 1

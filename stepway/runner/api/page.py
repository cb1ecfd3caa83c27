"""The page at `/`: the flows, each with its graph as a drawing, and links to what `describe` says; nothing from outside."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from stepway.runner.api import describe
from stepway.runner.api.errors import Headers
from stepway.runner.live import Served

HEADERS: Headers = (
    (b"content-type", b"text/html; charset=utf-8"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

_WIDTH, _HEIGHT, _ACROSS, _DOWN, _EDGE = 190, 34, 220, 74, 16
_LONGEST = 24
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c2330;background:#fff}
section{border:1px solid #d7dce5;border-radius:8px;padding:1rem 1.25rem;margin:1rem 0;overflow-x:auto}
h2{margin:0;font-size:1.15rem}a{color:#1d4ed8;margin-right:1rem}p{margin:.25rem 0 .75rem}
svg text{font:12px system-ui,sans-serif;text-anchor:middle;fill:#1c2330}
rect{fill:#eef2ff;stroke:#6477c8}.event rect{fill:#fff;stroke:#8a94a6}.external rect{fill:#fff7e6;stroke:#c98a1b}
path{fill:none;stroke:#8a94a6}marker path{fill:#8a94a6;stroke:none}
@media(prefers-color-scheme:dark){body{color:#dfe4ee;background:#12161d}section{border-color:#333c4b}a{color:#8fb0ff}
svg text{fill:#dfe4ee}rect{fill:#1f2a4d;stroke:#6f86dd}.event rect{fill:#1a1f29}.external rect{fill:#33270f}}
"""


def page(flows: Iterable[Served]) -> bytes:
    """The whole page. Links are relative, for an app that is mounted somewhere."""
    sections = "".join(_section(served) for served in flows) or "<p>No workflow is served.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Workflows</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f'<body><h1>Workflows</h1><p><a href="handlers?limit=50">Handlers</a><a href="openapi.json">OpenAPI</a></p>'
        f"{sections}</body></html>"
    ).encode()


def _section(served: Served) -> str:
    base = f"workflows/{quote(served.name, safe='')}"
    links = (("schema", "Start and stop events"), ("events", "Events"), ("representation", "Graph"))
    listed = "".join(f'<a href="{escape(f"{base}/{kind}")}">{label}</a>' for kind, label in links)
    try:
        drawn = drawing(describe.graph(served.workflow)["graph"])
    except Exception as error:  # the library cannot describe every flow that it runs
        drawn = f"<p>There is no graph: {escape(type(error).__name__)}</p>"
    return f"<section><h2>{escape(served.name)}</h2><p>{listed}</p>{drawn}</section>"


@dataclass(frozen=True, slots=True)
class _Box:
    x: int
    y: int


def drawing(graph: dict[str, Any]) -> str:
    """A graph as SVG: steps and events in rows, each below what leads to it."""
    nodes, edges = graph["nodes"], [(edge["source"], edge["target"]) for edge in graph["edges"]]
    rows = _rows([node["id"] for node in nodes], edges)
    places = _places(rows)
    width = max((len(row) for row in rows), default=1) * _ACROSS
    height = len(rows) * _DOWN
    lines = "".join(
        _line(places[source], places[target]) for source, target in edges if {source, target} <= set(places)
    )
    boxes = "".join(_box(places[node["id"]], node) for node in nodes)
    return (
        f'<svg role="img" aria-label="Steps and events" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0L8 4L0 8z"/></marker></defs>{lines}{boxes}</svg>'
    )


def _rows(nodes: list[str], edges: list[tuple[str, str]]) -> list[list[str]]:
    """Breadth first from the nodes that nothing leads to; what lies on a circle goes where it is met first."""
    following: dict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        following[source].append(target)
    led_to = {target for source, target in edges if source != target}
    row_of: dict[str, int] = {}
    for root in [node for node in nodes if node not in led_to] + nodes:
        if root in row_of:
            continue
        row_of[root] = 0
        queue = [root]
        for node in queue:
            for target in following[node]:
                if target not in row_of:
                    row_of[target] = row_of[node] + 1
                    queue.append(target)
    rows: list[list[str]] = [[] for _ in range(max(row_of.values(), default=-1) + 1)]
    for node in nodes:
        rows[row_of[node]].append(node)
    return rows


def _places(rows: list[list[str]]) -> dict[str, _Box]:
    widest = max((len(row) for row in rows), default=1)
    return {
        node: _Box(_EDGE + column * _ACROSS + (widest - len(row)) * _ACROSS // 2, _EDGE + number * _DOWN)
        for number, row in enumerate(rows)
        for column, node in enumerate(row)
    }


def _line(source: _Box, target: _Box) -> str:
    middle = _WIDTH // 2
    if target.y > source.y:
        start, end = source.y + _HEIGHT, target.y
        bend = (start + end) // 2
        shape = f"M{source.x + middle} {start}C{source.x + middle} {bend} {target.x + middle} {bend} {target.x + middle} {end}"
    else:
        right, aside = source.x + _WIDTH, max(source.x, target.x) + _WIDTH + _EDGE * 2
        at, to = source.y + _HEIGHT // 2, target.y + _HEIGHT // 2
        shape = f"M{right} {at}C{aside} {at} {aside} {to} {target.x + _WIDTH} {to}"
    return f'<path d="{shape}" marker-end="url(#arrow)"/>'


def _box(place: _Box, node: dict[str, Any]) -> str:
    label = str(node.get("label") or node["id"])
    shown = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
    kind = node["node_type"] if node["node_type"] in ("event", "external") else "step"
    return (
        f'<g class="{kind}"><title>{escape(label)}</title><rect x="{place.x}" y="{place.y}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" rx="{_HEIGHT // 2 if kind == "event" else 5}"/>'
        f'<text x="{place.x + _WIDTH // 2}" y="{place.y + 21}">{escape(shown)}</text></g>'
    )

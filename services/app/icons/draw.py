"""Draws the icons: `python -m services.app.icons.draw` writes every design as a PNG, with the standard library alone.

A stroke is drawn by the distance of each pixel to it, so that edges are smooth at any size. Run it after a change in
`designs`, and commit the files; a test compares the two.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from services.app.icons.designs import DESIGNS, LETTERS, Design

SIZE = 96  # pixels, both ways
GRID = 24.0
_SCALE = SIZE / GRID
_CORNER = 5.6
_STROKE = 1.7
_LETTER_HEIGHT = 8.2
_LETTER_GAP = 2.9  # between the middles of two strokes
_LETTER_STROKE = 1.9
_MONOGRAM_WIDTH = 16.2
_SHADE = 0.11  # how much lighter the top is than the colour, and darker the bottom


class Segment(NamedTuple):
    """A line with round ends on the grid; a disc is one that ends where it starts."""

    x1: float
    y1: float
    x2: float
    y2: float
    radius: float


def render(design: Design) -> list[bytes]:
    """The picture as rows of RGBA pixels, from the top."""
    ink = _coverage(list(_monogram(design.monogram) if design.monogram else _segments(design.strokes, _STROKE / 2)))
    color = tuple(int(design.color[at : at + 2], 16) for at in (1, 3, 5))
    rows = []
    for y in range(SIZE):
        shade = _SHADE * (1 - 2 * y / (SIZE - 1))
        base = [part + (255 - part) * shade if shade > 0 else part * (1 + shade) for part in color]
        row = bytearray()
        for x in range(SIZE):
            white = ink[y * SIZE + x]
            row += bytes(round(part + (255 - part) * white) for part in base)
            row.append(round(255 * _inside_tile((x + 0.5) / _SCALE, (y + 0.5) / _SCALE)))
        rows.append(bytes(row))
    return rows


def png(rows: list[bytes]) -> bytes:
    """The rows as a PNG file of 8-bit RGBA. Each row is stored as its difference to the one above."""
    above = bytes(len(rows[0]))
    body = bytearray()
    for row in rows:
        body += b"\x02" + bytes((a - b) & 0xFF for a, b in zip(row, above, strict=True))
        above = row
    header = struct.pack(">IIBBBBB", len(rows[0]) // 4, len(rows), 8, 6, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(body), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _monogram(letters: str) -> Iterator[Segment]:
    """The letters side by side in the middle of the tile, smaller where they are wide."""
    glyphs = [list(_segments(LETTERS[letter], 0)) for letter in letters]
    widths = [max(max(segment.x1, segment.x2) for segment in glyph) for glyph in glyphs]
    gaps = _LETTER_GAP * (len(glyphs) - 1)
    scale = min(_LETTER_HEIGHT / 10, (_MONOGRAM_WIDTH - gaps) / sum(widths))
    left, top = (GRID - sum(widths) * scale - gaps) / 2, GRID / 2 - 5 * scale
    for glyph, width in zip(glyphs, widths, strict=True):
        for x1, y1, x2, y2, _ in glyph:
            ends = (left + x1 * scale, top + y1 * scale, left + x2 * scale, top + y2 * scale)
            yield Segment(*ends, _LETTER_STROKE / 2)
        left += width * scale + _LETTER_GAP


def _segments(strokes: str, radius: float) -> Iterator[Segment]:
    for path in strokes.split(";"):
        points: list[tuple[float, float]] = []
        for token in path.split():
            if token.startswith("@"):
                x, y, disc = _numbers(token[1:])
                yield Segment(x, y, x, y, disc)
            elif token.startswith("("):
                points += _arc(*_numbers(token[1:-1]))
            else:
                x, y = _numbers(token)
                points.append((x, y))
        for (x1, y1), (x2, y2) in pairwise(points):
            yield Segment(x1, y1, x2, y2, radius)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> list[tuple[float, float]]:
    steps = max(2, math.ceil(abs(end - start) / 7.5))
    angles = [math.radians(start + (end - start) * step / steps) for step in range(steps + 1)]
    return [(cx + rx * math.cos(angle), cy + ry * math.sin(angle)) for angle in angles]


def _coverage(segments: list[Segment]) -> list[float]:
    """How much of each pixel the strokes cover, 0 to 1."""
    covered = [0.0] * (SIZE * SIZE)
    for segment in segments:
        reach = segment.radius + 1
        xs = _pixels(min(segment.x1, segment.x2) - reach, max(segment.x1, segment.x2) + reach)
        ys = _pixels(min(segment.y1, segment.y2) - reach, max(segment.y1, segment.y2) + reach)
        for y in ys:
            for x in xs:
                distance = _distance((x + 0.5) / _SCALE, (y + 0.5) / _SCALE, segment) - segment.radius
                covered[y * SIZE + x] = max(covered[y * SIZE + x], _clamp(0.5 - distance * _SCALE))
    return covered


def _pixels(low: float, high: float) -> range:
    return range(max(0, math.floor(low * _SCALE)), min(SIZE, math.ceil(high * _SCALE)))


def _distance(x: float, y: float, segment: Segment) -> float:
    dx, dy = segment.x2 - segment.x1, segment.y2 - segment.y1
    length = dx * dx + dy * dy
    along = _clamp(((x - segment.x1) * dx + (y - segment.y1) * dy) / length) if length else 0.0
    return math.hypot(x - segment.x1 - along * dx, y - segment.y1 - along * dy)


def _inside_tile(x: float, y: float) -> float:
    """How much of a pixel lies in the rounded square."""
    out_x, out_y = max(_CORNER - x, x - GRID + _CORNER, 0.0), max(_CORNER - y, y - GRID + _CORNER, 0.0)
    return _clamp(0.5 - (math.hypot(out_x, out_y) - _CORNER) * _SCALE)


def _clamp(value: float) -> float:
    return min(1.0, max(0.0, value))


def main(folder: Path = Path(__file__).parent) -> None:
    for category, designs in DESIGNS.items():
        (folder / category).mkdir(exist_ok=True)
        for stem, design in designs.items():
            (folder / category / f"{stem}.png").write_bytes(png(render(design)))


if __name__ == "__main__":
    main()

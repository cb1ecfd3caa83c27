"""What a command prints: data to stdout as a table, JSON or YAML; words for a person to stderr.

Text from a server may hold terminal escapes in a name or a log line; everything shown passes `clean`.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Control characters, and the marks that reorder text; tabs and line ends stay.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_RAW_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_WIDE = 10_000  # columns: nothing is cut where nobody looks at a terminal
_STYLES = {
    "active": "green", "available": "green", "running": "green", "ready": "green", "succeeded": "green",
    "completed": "green", "safe": "green", "failed": "red", "error": "red", "critical": "red", "high": "red",
    "unavailable": "red", "cleanup_required": "red", "degraded": "yellow", "medium": "yellow", "cancelled": "yellow",
    "deploying": "cyan", "importing": "cyan", "updating": "cyan", "pending": "cyan", "in_progress": "cyan",
}  # fmt: skip


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Column(NamedTuple):
    """A column of a list: its title, and where its value is: a dotted path, or a function of the item."""

    title: str
    value: str | Callable[[dict[str, Any]], Any]


Columns = Sequence[Column]


def clean(text: str) -> str:
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def member(item: Any, path: str) -> Any:
    """What a dotted path leads to; None where it leads nowhere."""
    for name in path.split("."):
        item = item.get(name) if isinstance(item, dict) else None
    return item


class Printer:
    """Prints in one format. `err` is for progress and remarks."""

    def __init__(self, form: Format = Format.TABLE) -> None:
        self.form = form
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)

    @property
    def is_table(self) -> bool:
        return self.form is Format.TABLE

    def say(self, text: str, style: str | None = None) -> None:
        """A sentence for a person, on stderr."""
        self.err.print(Text(clean(text), style=style or ""), soft_wrap=True)

    def rows(self, items: list[dict[str, Any]], columns: Columns, empty: str = "Nothing here yet.") -> None:
        """A list: a table, or the items themselves as an array."""
        if not self.is_table:
            self.data(items)
            return
        if not items:
            self.say(empty, "dim")
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column.title, overflow="fold")
        for item in items:
            values = [c.value(item) if callable(c.value) else member(item, c.value) for c in columns]
            table.add_row(*(_cell(value) for value in values))
        self._print(table)

    def one(self, item: dict[str, Any]) -> None:
        """An object: a line per member, or the object itself."""
        if not self.is_table:
            self.data(item)
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in _flat(item):
            table.add_row(name, _cell(value))
        self._print(table)

    def _print(self, table: Table) -> None:
        if self.out.is_terminal:
            self.out.print(table)
            return
        with self.out.capture() as captured:
            self.out.print(table)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def data(self, value: Any) -> None:
        """Anything, as JSON or YAML."""
        if self.form is Format.YAML:
            import yaml

            sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=False))
            return
        text = json.dumps(value, indent=2, ensure_ascii=False)
        escaped = _RAW_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
        sys.stdout.write(
            escaped.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8")
            + "\n"
        )

    def write(self, text: str) -> None:
        """A piece of running text to stdout, at once."""
        sys.stdout.write(clean(text))
        sys.stdout.flush()


def _console(stream: Any) -> Console:
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else _WIDE)


def _cell(value: Any) -> Text:
    text = clean(plain(value))
    return Text(text, style=_STYLES.get(text, ""))


def plain(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(not isinstance(one, dict | list) for one in value):
        return ", ".join(plain(one) for one in value) or "-"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False) if value else "-"
    return str(value)


def _flat(item: dict[str, Any], prefix: str = "", depth: int = 2) -> list[tuple[str, Any]]:
    """Members with the dotted names of nested ones, `depth` levels down."""
    found: list[tuple[str, Any]] = []
    for name, value in item.items():
        if isinstance(value, dict) and value and depth:
            found += _flat(value, f"{prefix}{name}.", depth - 1)
        else:
            found.append((prefix + name, value))
    return found


def size(value: Any) -> str:
    """Bytes as people read them."""
    if not isinstance(value, int | float):
        return "-"
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"

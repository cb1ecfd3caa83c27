"""The front matter and the first paragraph of a model card (README.md). YAML as plain text: no tags, no aliases."""

import re
from pathlib import Path
from typing import Any

import yaml

from services.model.metadata.documents import mapping, text

_MAX_FRONT = 64 * 1024  # bytes
_MAX_READ = 256 * 1024
_MAX_LANGUAGES = 200
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*|code|multilingual", re.ASCII)
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


class _PlainLoader(yaml.BaseLoader):
    """Every scalar is text; an alias is an error, so that a small document stays small."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


class Card:
    """What a model card declares. Unknown is None or empty."""

    def __init__(self, front: dict[str, Any], prose: str) -> None:
        self._front = front
        self.license = _license(front)
        self.languages = languages(front.get("language"))
        self.pipeline_tag = text(front.get("pipeline_tag"), 64)
        self.description = _first_paragraph(prose)


def read_card(path: Path | None) -> Card:
    """An empty card if there is no file, or none that can be read."""
    if path is None:
        return Card({}, "")
    try:
        with path.open("rb") as file:
            body = file.read(_MAX_READ).decode("utf-8", "replace")
    except OSError:
        return Card({}, "")
    found = _FRONT.match(body)
    if found is None:
        return Card({}, body)
    prose = body[found.end() :]
    if len(found[1]) > _MAX_FRONT:
        return Card({}, prose)
    try:
        # a loader without constructors; see the class
        front = yaml.load(found[1], Loader=_PlainLoader)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError):
        front = None
    return Card(mapping(front), prose)


def languages(value: object) -> list[str]:
    """Language codes, each once, in their order."""
    items = value if isinstance(value, list) else [value]
    found = [item.strip() for item in items[:_MAX_LANGUAGES] if isinstance(item, str)]
    return list(dict.fromkeys(item for item in found if _LANGUAGE.fullmatch(item)))


def _license(front: dict[str, Any]) -> str | None:
    value = front.get("license")
    if isinstance(value, list):
        value = next(iter(value), None)
    name = text(value)
    return text(front.get("license_name")) or name if name == "other" else name


def _first_paragraph(prose: str) -> str | None:
    """The first lines that are sentences: no heading, table, picture, HTML or code."""
    for block in re.split(r"\n\s*\n", prose[:32_768]):
        plain = re.sub(r"!?\[([^\]]{0,300})\]\([^)]{0,1000}\)", r"\1", block.strip())
        plain = re.sub(r"[*`_]{1,3}", "", plain)
        if re.match(r"[A-Za-z0-9\"'“]", plain) and len(plain) >= 40:
            return text(plain, 500)
    return None

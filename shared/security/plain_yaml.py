"""Reads one small YAML document from a stranger into plain text, mappings and lists.

Nothing is constructed: the parser's events are read one by one, and whatever YAML can do beyond plain data (aliases,
anchors, merge keys, tags, several documents) is refused as soon as it appears, before the rest is looked at.
Used by `shared.security.kubeconfig`; the codes are prefixed with the name of what is read.
"""

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
)

from shared.errors import Problem

Plain: TypeAlias = "str | bool | list[Plain] | dict[str, Plain] | None"

# libyaml reads the same language about twenty times faster; wheels of PyYAML have it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Sizes in bytes, levels and nodes."""

    max_bytes: int = 256 * 1024
    max_depth: int = 20
    max_nodes: int = 20_000


def load(data: bytes, *, prefix: str, bounds: Bounds) -> dict[str, Plain]:
    """The document's top mapping. Plain scalars become text, true/false, or null; numbers and dates stay text.

    Raises `Problem` with a code `<prefix>_…`; no part of the input is ever in the sentence.
    """
    return _Reader(prefix, bounds).document(_text(data, prefix, bounds))


def refuse(prefix: str, code: str, detail: str) -> NoReturn:
    # `from None`: the parsers' own errors quote the input, and a log of the chain would too
    raise Problem(f"{prefix}_{code}", detail) from None


def _text(data: bytes, prefix: str, bounds: Bounds) -> str:
    if len(data) > bounds.max_bytes:
        refuse(prefix, "too_large", f"The file is larger than {bounds.max_bytes // 1024} KiB.")
    if not data.strip():
        refuse(prefix, "empty", "The file is empty.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        refuse(prefix, "binary", "The file is not UTF-8 text.")
    if _NOT_TEXT.search(text):
        refuse(prefix, "binary", "The file holds control characters: it is not a text file.")
    return text


@dataclass(slots=True)
class _Open:
    """A mapping or a list whose end has not been seen. `key` is the mapping's key that waits for its value."""

    value: dict[str, Plain] | list[Plain]
    key: str | None = None


@dataclass(slots=True)
class _Reader:
    prefix: str
    bounds: Bounds
    nodes: int = 0
    documents: int = 0
    root: Plain = None
    opened: list[_Open] = field(default_factory=list)

    def document(self, text: str) -> dict[str, Plain]:
        try:
            for event in yaml.parse(text, Loader=_LOADER):
                self._take(event)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f" near line {mark.line + 1}" if mark is not None else ""
            refuse(self.prefix, "not_yaml", f"The file is not valid YAML{place}.")
        if self.documents == 0 or self.root is None:
            refuse(self.prefix, "empty", "The file holds no data, only blank lines or comments.")
        if not isinstance(self.root, dict):
            refuse(self.prefix, "not_yaml", "The file is not a YAML mapping of names to values.")
        return self.root

    def _take(self, event: Event) -> None:
        if isinstance(event, DocumentStartEvent):
            self._begin(event)
        elif isinstance(event, NodeEvent):
            self._node(event)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            self._place(self.opened.pop().value)

    def _begin(self, event: DocumentStartEvent) -> None:
        self.documents += 1
        if self.documents > 1:
            refuse(self.prefix, "several_documents", "The file holds several YAML documents; send exactly one.")
        if event.tags:
            refuse(self.prefix, "tags", "The file declares YAML tags; they are not accepted.")

    def _node(self, event: NodeEvent) -> None:
        self.nodes += 1
        if self.nodes > self.bounds.max_nodes:
            refuse(self.prefix, "too_complex", f"The file holds more than {self.bounds.max_nodes} values.")
        if isinstance(event, AliasEvent) or event.anchor is not None:
            refuse(self.prefix, "aliases", "The file uses YAML anchors or aliases; write each value out.")
        if getattr(event, "tag", None) is not None:
            refuse(self.prefix, "tags", "The file uses YAML tags (`!…`); they are not accepted.")
        if isinstance(event, ScalarEvent):
            self._scalar(event)
        else:
            self._open({} if isinstance(event, MappingStartEvent) else [])

    def _open(self, value: dict[str, Plain] | list[Plain]) -> None:
        if self._wants_key():
            refuse(self.prefix, "not_yaml", "A name in the file is a list or a mapping; names are text.")
        if len(self.opened) >= self.bounds.max_depth:
            refuse(self.prefix, "too_deep", f"The file is nested deeper than {self.bounds.max_depth} levels.")
        self.opened.append(_Open(value))

    def _scalar(self, event: ScalarEvent) -> None:
        text = event.value
        if _NOT_TEXT.search(text):  # by an escape such as "\0", which the look at the raw text cannot see
            refuse(self.prefix, "binary", "The file holds control characters: it is not a text file.")
        if self._wants_key():
            self._name(text, plain=not event.style)
        else:
            self._place(text if event.style else _resolve(text))

    def _wants_key(self) -> bool:
        return bool(self.opened) and isinstance(self.opened[-1].value, dict) and self.opened[-1].key is None

    def _name(self, name: str, *, plain: bool) -> None:
        if name == "<<" and plain:
            refuse(self.prefix, "aliases", "The file uses a YAML merge key (`<<`); write each value out.")
        top = self.opened[-1]
        if name in top.value:
            refuse(self.prefix, "duplicate_keys", "A name occurs twice in one mapping of the file.")
        top.key = name

    def _place(self, value: Plain) -> None:
        if not self.opened:
            self.root = value
            return
        top = self.opened[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is not None:
            top.value[top.key] = value
            top.key = None


def _resolve(text: str) -> Plain:
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    return False if text in _FALSE else text

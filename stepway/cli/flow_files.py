"""Files with definitions of flows: one flow in each, as YAML or JSON, in either dialect.

YAML is read as plain data only: no aliases (a small file could ask for all memory), no tags, no name twice, and of words only
`true`, `false` and `null` mean something else than themselves. `flows` is what uses it.
"""

import json
import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from stepway.cli.problems import Usage

MAX_BYTES = 1024 * 1024
ENDINGS = (".yaml", ".yml", ".json")
HEADER = """\
# A flow of Stepway. After a change: stepway flows validate {name} && stepway flows apply {name}
"""


class Unreadable(Exception):
    """A file holds no definition. `place` is where: "line 3", or "" for the whole."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(message)
        self.place = place


class Definition(NamedTuple):
    file: Path
    body: dict[str, Any]

    @property
    def name(self) -> str:
        """What the flow is called; "" where that is no text."""
        name = self.body.get("name", self.body.get("title"))
        return name if isinstance(name, str) else ""


def files_of(paths: list[Path]) -> list[Path]:
    """The files, and those in folders among them. `Usage` when there are none."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(one for one in path.iterdir() if one.suffix in ENDINGS) if path.is_dir() else [path]
        if not inside:
            raise Usage(f"{path} has no files that end with {', '.join(ENDINGS)}.")
        found += inside
    return list(dict.fromkeys(found))


def read(file: Path) -> Definition:
    """Raises `Unreadable`, and OSError."""
    return Definition(file, mapping(file.read_bytes(), is_json=file.suffix == ".json"))


def mapping(data: bytes, *, is_json: bool = False) -> dict[str, Any]:
    """One YAML or JSON object. Raises `Unreadable`."""
    if len(data) > MAX_BYTES:
        raise Unreadable("", f"The file is larger than {MAX_BYTES >> 20} MiB.")
    try:
        text = data.decode("utf-8-sig")
        value = (
            json.loads(text, object_pairs_hook=_once, parse_constant=_constant, parse_float=_float)
            if is_json
            else _yaml(text)
        )
    except UnicodeDecodeError:
        raise Unreadable("", "The file is not UTF-8 text.") from None
    except RecursionError:
        raise Unreadable("", "Values are nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"line {error.lineno}", f"This is not JSON: {error.msg}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise Unreadable(place, f"This is not YAML: {problem}.") from None
    except ValueError as error:  # a number too long to be read
        raise Unreadable("", f"A value cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise Unreadable("", "The file must hold one object with names and values.")
    return value


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once, parse_constant=_constant, parse_float=_float)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unreadable("", "A name occurs twice in one object.")
    return found


def _constant(name: str) -> NoReturn:
    raise Unreadable("", f"{name} is no JSON value.")


# ---- YAML


class _Loader(yaml.SafeLoader):
    """YAML as JSON has it."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # of PyYAML
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _at(event, "Anchors and aliases are not taken; write each value out.")
        if getattr(event, "tag", None) is not None:
            raise _at(event, "Tags (`!…`) are not taken.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _at(key_node, "A name must be a text; quote it.")
            if key in found:
                raise _at(key_node, "This name occurs twice in one object.")
            found[key] = self.construct_object(value_node, deep=True)
        return found


def _at(where: Any, message: str) -> Unreadable:
    return Unreadable(f"line {where.start_mark.line + 1}", message)


_CORE = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(0|[1-9][0-9]*)[eE][-+]?[0-9]+",
        "-+0123456789",
    ),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), list(_first))


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Unreadable("", f"The number {text[:40]} is too large.")
    return value


_Loader.add_constructor("tag:yaml.org,2002:float", lambda _loader, node: _float(node.value))


def _yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text_node)
for _tag, (_pattern, _first) in _CORE.items():  # so that a text which reads as a number, here or by YAML 1.1, is quoted
    _Dumper.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), list(_first))


def as_yaml(body: dict[str, Any]) -> str:
    """The definition as people read it; long texts as blocks."""
    return yaml.dump(body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def write(folder: Path, name: str, body: dict[str, Any], taken: set[str]) -> Path:
    """Writes a definition to a file that is called like the flow, and not like one of `taken`."""
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "flow"
    chosen, number = stem, 1
    while chosen in taken:
        number += 1
        chosen = f"{stem}-{number}"
    taken.add(chosen)
    file = folder / f"{chosen}.yaml"
    file.write_text(HEADER.format(name=file.name) + as_yaml(body), encoding="utf-8")
    return file

"""References in values: `{{input.x}}`. Parsed once, when a flow is created; resolved every time that a task runs.

What a reference gives:
- A text that is one reference and nothing else becomes what it names, with its type. What it names is not copied.
- Inside of a longer text it is rendered: texts as they are, numbers and booleans as JSON, objects and lists as JSON text,
  null as "". What comes out is never looked at for references again.
- `\\{{` writes `{{`. Before `{{` two backslashes write one; everywhere else a backslash is a backslash.
- A path goes through members of objects and, by number, items of lists: plain dicts and lists only, no attributes.

What is not there:
- A task that was skipped, or has failed and may (`on_error: continue`), has `{"output": {}}`: each of its outputs is null.
  So is any output that a task has not given. The definition's check knows which outputs there are.
- Whatever lies below null is null.
- Any other member or item that is not there is a `ReferenceFault`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from shared.flows import plain
from shared.flows.faults import Faults, FlowFaults, count, member, shown
from shared.flows.plain import Json

MAX_RENDERED = 1 << 20  # bytes of all texts that one `resolve` renders
MAX_REFERENCE = 512  # characters between the braces
MAX_SEGMENTS = 20
MAX_RENDERED_DEPTH = 64
SEGMENT = re.compile(r"[A-Za-z0-9_-]+")
INDEX = re.compile(r"[0-9]{1,9}")

Root = Literal["input", "refs", "output", "item", "index"]


class Notation(NamedTuple):
    """The words in which a dialect writes its references."""

    input: str
    refs: str
    output: str

    def help(self) -> str:
        return (
            f"References are `{{{{{self.input}.NAME}}}}` and `{{{{{self.refs}.TASK.{self.output}.NAME}}}}`; "
            "write `\\{{` for the braces themselves."
        )


CANONICAL = Notation("input", "refs", "output")


class Reference(NamedTuple):
    """What stands between braces. `task` is set for the root `refs`; `path` is what comes after, from the name on."""

    root: Root
    task: str | None
    path: tuple[str, ...]

    def spell(self, notation: Notation = CANONICAL) -> str:
        """Without the braces."""
        if self.root == "refs":
            return ".".join((notation.refs, self.task or "", notation.output, *self.path))
        return ".".join(({"input": notation.input, "output": notation.output}.get(self.root, self.root), *self.path))


class BadReference(ValueError):
    """A text has `{{` that begins no reference."""


class ValueFault(Exception):
    """These values do not do. `path`: where in the value; `what` follows on the reference, where there is one."""

    def __init__(self, path: str, what: str, reference: Reference | None = None) -> None:
        self.path = path
        self.what = what
        self.reference = reference
        self.message = self.told(CANONICAL)
        super().__init__(self.message)

    def told(self, notation: Notation) -> str:
        """The message, in the words of a dialect."""
        return self.what if self.reference is None else f"`{{{{{self.reference.spell(notation)}}}}}` {self.what}"


class ReferenceFault(ValueFault):
    """A reference cannot be resolved with these values."""


Parts = tuple[str | Reference, ...]


def parse(text: str, notation: Notation = CANONICAL) -> Parts:
    """The pieces of a text, in one pass over it. Raises `BadReference` at the first thing that is none."""
    parts: list[str | Reference] = []
    literal: list[str] = []
    done = 0
    while (found := text.find("{{", done)) >= 0:
        start = found
        while start > done and text[start - 1] == "\\":
            start -= 1
        backslashes = found - start
        if found > done:
            literal.append(text[done:start] + "\\" * (backslashes // 2))
        if backslashes % 2:
            literal.append("{{")
            done = found + 2
            continue
        end = text.find("}}", found + 2, found + 2 + MAX_REFERENCE)
        if end < 0:
            raise BadReference(f"`{{{{` at character {found + 1} has no `}}}}`. {notation.help()}")
        if before := "".join(literal):
            parts.append(before)
        literal = []
        parts.append(_reference(text[found + 2 : end].strip(), notation))
        done = end + 2
    if rest := "".join(literal) + text[done:]:
        parts.append(rest)
    return tuple(parts)


def spell(parts: Parts, notation: Notation = CANONICAL) -> str:
    """The text that `parse` reads as these pieces."""
    written = []
    for index, part in enumerate(parts):
        if isinstance(part, Reference):
            written.append("{{" + part.spell(notation) + "}}")
        else:
            followed = index + 1 < len(parts)
            written.append(_escaped(part, followed))
    return "".join(written)


def translate(value: Json, source: Notation, target: Notation, path: str, faults: Faults) -> Json:
    """`value` with its references written in another notation. What cannot be read is left as it was, with a fault.

    `value` is plain JSON of bounded depth.
    """
    if type(value) is dict:
        for name in value:
            if "{{" in name:
                faults.add(
                    member(path, name), "bad_reference", "References are filled into values only, not into names."
                )
        return {name: translate(one, source, target, member(path, name), faults) for name, one in value.items()}
    if type(value) is list:
        return [translate(one, source, target, f"{path}[{index}]", faults) for index, one in enumerate(value)]
    if type(value) is str and "{{" in value:
        try:
            return spell(parse(value, source), target)
        except BadReference as error:
            faults.add(path, "bad_reference", str(error))
    return value


class Use(NamedTuple):
    """One reference in a value. `whole`: it is all of its text, so that its type is kept."""

    path: str
    reference: Reference
    whole: bool


@dataclass(frozen=True, slots=True)
class Template:
    """A value whose references have been parsed. Made by `compile_value`."""

    path: str
    tree: Json  # as the value, with `Parts` for texts that have references
    uses: tuple[Use, ...]

    @property
    def references(self) -> tuple[Reference, ...]:
        return tuple(use.reference for use in self.uses)

    def resolve(self, values: Mapping[str, Json]) -> Json:
        """The value with all references filled in, in new objects and lists. Raises nothing but `ReferenceFault`.

        `values`: `{"input": {…}, "refs": {TASK: {"output": {…}}}}`, in a loop also `item` and `index`, in outputs `output`.
        """
        return _Filling(values).fill(self.tree, self.path)


def compile_value(value: Json, path: str = "") -> Template:
    """Parse the references of a value once. `path` is where it stands. Raises `FlowFaults` with every fault in it."""
    if fault := plain.problem(value, path):
        raise FlowFaults([fault])
    faults = Faults()
    template = compile_plain(value, path, faults)
    faults.raise_any()
    return template


def compile_plain(value: Json, path: str, faults: Faults) -> Template:
    """As `compile_value`, of what is known to be plain JSON; a text with a fault is taken as it is."""
    uses: list[Use] = []
    return Template(path, _compiled(value, path, uses, faults), tuple(uses))


def look_up(reference: Reference, values: Mapping[str, Json], path: str = "") -> Json:
    """What a reference names. Raises `ReferenceFault`."""
    root: Json = values.get(reference.root)
    if reference.root == "refs":
        root = root.get(reference.task) if type(root) is dict else None
        root = root.get("output") if type(root) is dict else None
    if root is None and (reference.root not in values or reference.root == "refs"):
        raise ReferenceFault(path, "is not known here (yet).", reference)
    steps = reference.path
    if reference.root == "refs" and steps and type(root) is dict:
        root, steps = root.get(steps[0]), steps[1:]
    value = _walk(root, steps, reference, path)
    if type(value) not in (*plain.SCALARS, dict, list):
        raise ReferenceFault(path, "is no JSON value.", reference)
    return value


@lru_cache(maxsize=4096)
def _reference(content: str, notation: Notation) -> Reference:
    segments = content.split(".")
    if len(segments) > MAX_SEGMENTS or not all(SEGMENT.fullmatch(one) for one in segments):
        raise BadReference(f"`{{{{{shown(content)}}}}}` is not a reference. {notation.help()}")
    first, rest = segments[0], tuple(segments[1:])
    if first == notation.input:
        return Reference("input", None, rest)
    if first == notation.refs and len(rest) >= 2 and rest[1] == notation.output:
        return Reference("refs", rest[0], rest[2:])
    if first == notation.output and rest:
        return Reference("output", None, rest)
    if first == "item":
        return Reference("item", None, rest)
    if content == "index":
        return Reference("index", None, ())
    raise BadReference(f"`{{{{{shown(content)}}}}}` is not a reference. {notation.help()}")


def _escaped(text: str, followed: bool) -> str:
    """A literal so that it is read as one. Of an odd run of braces the first stands alone, lest it should join a reference."""
    if "{{" not in text and "\\" not in text:
        return text
    pieces = []
    done = 0
    while (found := text.find("{{", done)) >= 0:
        before, end = text[done:found], found
        while end < len(text) and text[end] == "{":
            end += 1
        pairs, odd = divmod(end - found, 2)
        pieces.append(before + ("{" if odd else "\\" * _trailing(before)) + "\\{{" * pairs)
        done = end
    rest = text[done:]
    return "".join(pieces) + rest + ("\\" * _trailing(rest) if followed else "")


def _trailing(text: str) -> int:
    return len(text) - len(text.rstrip("\\"))


def _compiled(value: Json, path: str, uses: list[Use], faults: Faults) -> Json:
    if type(value) is dict:
        return {name: _compiled(one, member(path, name), uses, faults) for name, one in value.items()}
    if type(value) is list:
        return [_compiled(one, f"{path}[{index}]", uses, faults) for index, one in enumerate(value)]
    if type(value) is not str or "{{" not in value:
        return value
    try:
        parts = parse(value)
    except BadReference as error:
        faults.add(path, "bad_reference", str(error))
        return value
    uses.extend(Use(path, part, len(parts) == 1) for part in parts if isinstance(part, Reference))
    return parts


def _walk(value: Json, steps: tuple[str, ...], reference: Reference, path: str) -> Json:
    for step in steps:
        if value is None:
            return None
        if type(value) is dict and step in value:
            value = value[step]
        elif type(value) is list and INDEX.fullmatch(step) and int(step) < len(value):
            value = value[int(step)]
        else:
            what = f"member `{shown(step)}`" if type(value) is dict else f"item {shown(step)}"
            held = (
                f"a list of {count(len(value), 'item')}" if type(value) is list else f"of type {plain.type_of(value)}"
            )
            raise ReferenceFault(path, f"has no {what}: what it is looked for in is {held}.", reference)
    return value


class _Filling:
    """One `resolve`: what is filled in, and how much may still be rendered."""

    def __init__(self, values: Mapping[str, Json]) -> None:
        self.values = values
        self.left = MAX_RENDERED

    def fill(self, tree: Json, path: str) -> Json:
        if type(tree) is dict:
            return {name: self.fill(one, member(path, name)) for name, one in tree.items()}
        if type(tree) is list:
            return [self.fill(one, f"{path}[{index}]") for index, one in enumerate(tree)]
        if type(tree) is not tuple:
            return tree
        if len(tree) == 1 and isinstance(tree[0], Reference):
            return look_up(tree[0], self.values, path)
        return "".join(self._pieces(tree, path))

    def _pieces(self, parts: Parts, path: str) -> Iterator[str]:
        for part in parts:
            piece = part if isinstance(part, str) else self._rendered(part, path)
            self.left -= len(piece) if piece.isascii() else len(piece.encode(errors="surrogatepass"))
            if self.left < 0:
                raise ReferenceFault(path, "The rendered text is larger than 1 MiB; pass the value itself, or cut it.")
            yield piece

    def _rendered(self, reference: Reference, path: str) -> str:
        value = look_up(reference, self.values, path)
        if value is None:
            return ""
        if type(value) is str:
            return value
        fault = plain.problem(value, max_depth=MAX_RENDERED_DEPTH, storable=False)
        if fault is not None:
            raise ReferenceFault(path, f"cannot be rendered: {fault.message}", reference)
        return json.dumps(value, ensure_ascii=False)

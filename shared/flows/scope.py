"""What references can mean at a place of a flow, and of which type that is. `validation` asks for every one.

Which type may feed which: one of the same type; `any` feeds all and is fed by all. A text that has something beside its
reference is always a text: so a number is made one by writing it inside of a text, and never silently.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.flows.dialects.words import Words
from shared.flows.faults import Faults, shown
from shared.flows.plain import FILE_HINT, Json, is_of, same
from shared.flows.references import INDEX, Reference, Template, Use
from stepway.tasks import TaskType, ValueType

FILE: dict[str, ValueType] = {
    "artifact_id": "text",
    "name": "text",
    "media_type": "text",
    "size": "number",
    "sha256": "text",
    "spilled": "boolean",
}


def fits(given: ValueType, wanted: ValueType) -> bool:
    """Whether a value that is declared as `given` may feed an input that is declared as `wanted`."""
    return given == wanted or "any" in (given, wanted)


@dataclass(frozen=True, slots=True)
class Place:
    """Where references stand. `task`: the position of the task, None in outputs of the flow."""

    task: int | None
    looping: bool = False
    outputs: Mapping[str, ValueType] | None = None  # of the flow, those before this one


@dataclass(slots=True)
class Scope:
    """What a flow's references can name. `needed` collects which task refers to which, by position."""

    words: Words
    faults: Faults
    sequential: bool
    inputs: dict[str, ValueType]
    positions: dict[str, int]
    kinds: list[TaskType | None]  # of each task; None where it is not known
    needed: list[set[int]]

    def expect(self, template: Template, wanted: ValueType, place: Place, choices: tuple[Json, ...] = ()) -> None:
        """Check the references in a value, and that it is of the type which its place takes."""
        kinds = [self.type_of(use, place) for use in template.uses]
        if not template.uses:
            self._literal(template.path, template.resolve({}), wanted, choices)
        elif type(template.tree) is not tuple:
            self._literal(template.path, template.tree, wanted, ())
        elif not template.uses[0].whole:
            if not fits("text", wanted):
                message = f"This becomes a text, and {_a(wanted)} is wanted; write one reference and nothing else."
                self.faults.add(template.path, "type_mismatch", message)
        elif kinds[0] is not None and not fits(kinds[0], wanted):
            self._mismatch(template.uses[0], kinds[0], wanted)

    def _literal(self, path: str, value: Json, wanted: ValueType, choices: tuple[Json, ...]) -> None:
        if value is None:
            return
        if wanted == "file" and type(value) is dict and type(value.get("artifact_id")) is tuple:
            return  # a file whose id is a reference
        if not is_of(value, wanted):
            self.faults.add(path, "wrong_type", f"This must be {_a(wanted)}{FILE_HINT if wanted == 'file' else ''}.")
        elif choices and not any(same(value, one) for one in choices):
            self.faults.add(path, "not_allowed", f"This must be one of {', '.join(map(shown, choices))}.")

    def type_of(self, use: Use, place: Place) -> ValueType | None:
        """The type of what a reference names; None with a fault, or where the type of its task is not known."""
        reference = use.reference
        if reference.root == "refs":
            return self._task_output(use, place)
        if reference.root == "input":
            return self._named(use, "input", self.inputs)
        if reference.root == "output":
            if place.outputs is None:
                self._bad(use, "may stand in outputs of the flow only; in a task name the task's output itself.")
                return None
            return self._named(use, "output that stands before", place.outputs)
        if not place.looping:
            self._bad(use, "means something only inside of the `task` of a flow.foreach.")
            return None
        return "number" if reference.root == "index" else "any"

    def need(self, name: str, place: Place, path: str, reference: Reference | None = None) -> int | None:
        """The position of the task of this name, which has to run before this place: a reference, else `depends_on`, asks."""
        position = self.positions.get(name)
        if position is None:
            hint = self.faults.nearest(name, self.positions)
            message = f"{self._named_by(name, reference)} names no task of this flow.{hint}"
            self.faults.add(path, "unknown_reference", message)
        elif place.task is None:
            pass
        elif position == place.task:
            message = f"{self._named_by(name, reference)} names its own task, which would wait for itself."
            self.faults.add(path, "cycle", message)
        elif self.sequential and position > place.task:
            message = "names a task that runs after this one; list it before, or set `execution` to parallel."
            self.faults.add(path, "forward_reference", f"{self._named_by(name, reference)} {message}")
        else:
            self.needed[place.task].add(position)
        return position

    def _named_by(self, name: str, reference: Reference | None) -> str:
        return f"`{shown(name)}`" if reference is None else self._spelled(reference)

    def _task_output(self, use: Use, place: Place) -> ValueType | None:
        reference = use.reference
        position = self.need(reference.task or "", place, use.path, reference)
        kind = None if position is None else self.kinds[position]
        if kind is None:
            return None
        if not reference.path:
            return "object"
        output = kind.output(reference.path[0])
        if output is None:
            names = [one.name for one in kind.outputs]
            hint = self.faults.nearest(reference.path[0], names) or f" It has {', '.join(names) or 'none'}."
            message = f"{self._spelled(reference)}: {kind.name} has no output `{shown(reference.path[0])}`.{hint}"
            self.faults.add(use.path, "unknown_reference", message)
            return None
        return self._below(use, output.type, reference.path[1:])

    def _named(self, use: Use, what: str, known: Mapping[str, ValueType]) -> ValueType | None:
        path = use.reference.path
        if not path:
            return "object"
        if path[0] not in known:
            hint = self.faults.nearest(path[0], known)
            message = f"{self._spelled(use.reference)}: this flow has no {what} `{shown(path[0])}`.{hint}"
            self.faults.add(use.path, "unknown_reference", message)
            return None
        return self._below(use, known[path[0]], path[1:])

    def _below(self, use: Use, kind: ValueType, path: tuple[str, ...]) -> ValueType | None:
        """The type of what lies at `path` inside of a value of the type `kind`."""
        for step in path:
            if kind == "file" and step in FILE:
                kind = FILE[step]
            elif kind in ("any", "object") or (kind == "list" and INDEX.fullmatch(step)):
                return "any"
            else:
                has = {"list": "has items 0, 1, 2 …", "file": f"has {', '.join(FILE)}"}.get(kind, "has no members")
                message = f"{self._spelled(use.reference)}: `{shown(step)}` is not there; {_a(kind)} {has}."
                self.faults.add(use.path, "unknown_reference", message)
                return None
        return kind

    def _mismatch(self, use: Use, given: ValueType, wanted: ValueType) -> None:
        message = f"{self._spelled(use.reference)} is {_a(given)}, and {_a(wanted)} is wanted here."
        if wanted == "text" and given != "file":
            message += (
                f' To render it, write it inside of a text, such as "value: {{{{{self._inner(use.reference)}}}}}".'
            )
        self.faults.add(use.path, "type_mismatch", message)

    def _bad(self, use: Use, message: str) -> None:
        self.faults.add(use.path, "bad_reference", f"{self._spelled(use.reference)} {message}")

    def _spelled(self, reference: Reference) -> str:
        return f"`{{{{{self._inner(reference)}}}}}`"

    def _inner(self, reference: Reference) -> str:
        return reference.spell(self.words.notation)


def _a(kind: ValueType) -> str:
    return {"any": "any value", "object": "an object"}.get(kind, f"a {kind}")

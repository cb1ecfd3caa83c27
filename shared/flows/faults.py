"""What is wrong with a flow or with what it is given: faults, each at its path, all of them in one exception.

Every module of `shared.flows` adds to a `Faults`; the API turns a `FlowFaults` into its 400.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

MAX_FAULTS = 80  # of one answer
MAX_COMPARISONS = 2000  # of names, of one answer: looking for the nearest one costs time
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")

# Every code that a fault may have.
CODES = {
    "no_dialect": "neither way of writing a flow can be told from the body",
    "mixed_dialects": "members of both ways of writing a flow are in one body",
    "unknown_member": "an object has a member that is not known there",
    "missing": "something required is not there",
    "wrong_type": "a value is not of the type that is asked for",
    "not_allowed": "a value is of the right type, but outside of what is taken",
    "too_long": "a text has too many characters, or a body too many bytes",
    "too_many": "a list has too many items, or there are more faults than are shown",
    "too_deep": "values are nested too deeply",
    "duplicate_name": "two things of one kind have the same name",
    "unknown_type": "there is no such type of task",
    "unknown_input": "the type of task, or the flow, has no input of this name",
    "one_of": "of a group of inputs not exactly one is given",
    "bad_reference": "`{{` begins something that is no reference, or one that means nothing at this place",
    "unknown_reference": "a reference, or `depends_on`, names nothing that the flow has",
    "forward_reference": "a task uses a task that runs after it",
    "cycle": "tasks wait for each other in a circle",
    "type_mismatch": "what a reference gives is not of the type that its place takes",
    "bad_condition": "a condition is not in the form that conditions have",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `path` is where, like `tasks[1].input.url` ("" is the body itself)."""

    path: str
    code: str
    message: str


class FlowFaults(Exception):
    """A definition, or the inputs of an execution, cannot be taken. `faults` holds at least one."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(f"{one.path or 'body'}: {one.message}" for one in self.faults[:3]))


@dataclass(slots=True)
class Faults:
    """Collects faults, up to `MAX_FAULTS`, so that a hostile body cannot ask for an endless answer."""

    found: list[Fault] = field(default_factory=list)
    comparisons: int = MAX_COMPARISONS

    def add(self, path: str, code: str, message: str) -> None:
        if len(self.found) < MAX_FAULTS:
            self.found.append(Fault(path, code, message))
        elif len(self.found) == MAX_FAULTS:
            self.found.append(Fault("", "too_many", f"There are more than {MAX_FAULTS} faults; mend these first."))

    @property
    def full(self) -> bool:
        return len(self.found) > MAX_FAULTS

    def nearest(self, name: str, known: Collection[str]) -> str:
        """ " Did you mean `…`?", or "" when nothing is near."""
        if not known or len(name) > 64 or len(known) > self.comparisons:
            return ""
        self.comparisons -= len(known)
        near = difflib.get_close_matches(name, known, 1)
        return f" Did you mean `{near[0]}`?" if near else ""

    def raise_any(self) -> None:
        if self.found:
            raise FlowFaults(self.found)


def member(path: str, name: str) -> str:
    """The path of a member of the object at `path`."""
    if PLAIN_NAME.fullmatch(name):
        return f"{path}.{name}" if path else name
    return f"{path}[{json.dumps(name[:64])}]"


def shown(value: object) -> str:
    """A name that came from outside, fit for a sentence."""
    text = str(value)
    return "".join(char if char.isprintable() else "?" for char in text[:64]) + ("…" if len(text) > 64 else "")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

"""What the dialects share: the same structure in other words, so that a dialect is a table from its words to ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shared.flows.references import Notation

DialectName = Literal["refs", "tasks"]

INPUT = ("name", "type", "required", "default", "description")
OUTPUT = ("name", "type", "value", "description")
RETRY = ("attempts", "delay", "multiplier", "max_delay", "jitter")
COMMON = {name: name for name in ("condition", "retry", "timeout", "on_error", "fallback", "description", "depends_on")}


@dataclass(frozen=True, slots=True)
class Words:
    """`head` and `task`: the members of a flow and of a task, from the dialect's word to ours, in the order of writing.

    `named_lists`: inputs of a task may be a list of `{name, value}`.
    """

    dialect: DialectName
    notation: Notation
    head: Mapping[str, str]
    task: Mapping[str, str]
    head_marks: tuple[str, ...]
    task_marks: tuple[str, ...]
    named_lists: bool = False

    @property
    def input(self) -> str:
        """The word for inputs, of a flow, a task and an execution alike."""
        return self.notation.input

    @property
    def output(self) -> str:
        return self.notation.output

    @property
    def body(self) -> Mapping[str, str]:
        """The members of a loop's body."""
        return {word: name for word, name in self.task.items() if name not in ("name", "depends_on", "outputs")}

    @property
    def task_name(self) -> str:
        return next(word for word, name in self.task.items() if name == "name")

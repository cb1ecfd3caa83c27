"""What the readers of archive formats yield. They raise `BadArchive` and nothing else for what is wrong inside."""

from collections.abc import Callable
from dataclasses import dataclass


class BadArchive(Exception):
    """The archive cannot be read, or has something in it that no model needs. The text is for the user."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive, to be read before the next one is asked for. `path` is as the archive has it."""

    path: str
    size: int
    read: Callable[[int], bytes]

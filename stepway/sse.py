"""Server-sent events as a client reads them: lines to events. `client` opens the streams and takes them up again."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RawEvent:
    """One event. `id` is the last id seen so far in the stream, as the standard has it."""

    id: str | None
    name: str
    data: str


def parse(lines: Iterable[str], last_id: str | None = None) -> Iterator[RawEvent]:
    """The events in a stream's lines (without their ends). Comments are left out, and a cut last event too."""
    name = ""
    data: list[str] = []
    for line in lines:
        if line == "":
            if data:
                yield RawEvent(last_id, name or "message", "\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
        elif field == "id" and "\0" not in value:
            last_id = value

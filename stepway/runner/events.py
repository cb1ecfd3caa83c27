"""Events of this server's own, beside the library's."""

from workflows.events import Event


class UnserialisableEvent(Event):
    """Stands in a stream for an event that could not be turned into JSON."""

    event_type: str
    error: str

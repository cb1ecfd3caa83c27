"""Events in and out: the envelope that clients and stores see, and the event that a client's data means.

An envelope is `{value, qualified_name, type, types}`: the event's fields, `module.Class`, the class's name and the names of
its parents up to (without) `Event`. Reading never imports: only classes of a registry resolve, also inside an event's fields.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json
from workflows.context.serializers import JsonSerializer
from workflows.events import Event

from stepway.runner.api import strict_json

_ERRORS_SHOWN = 5


class Unserialisable(ValueError):
    """An event cannot be written as JSON. The message names the event's class, the field and its type, never its value."""


class InvalidEvent(ValueError):
    """A client's data is no event of this flow; the message is for the client."""


class Registry(dict[str, type[Event]]):
    """The event classes of one flow by class name; of two of one name, the later."""

    def __init__(self, events: Iterable[type[Event]]) -> None:
        super().__init__((event.__name__, event) for event in events)

    @cached_property
    def by_qualified_name(self) -> dict[str, type[Event]]:
        return {name: event for event in self.values() for name in _names(event)}

    @cached_property
    def decoder(self) -> JsonSerializer:
        """Resolves these classes, and the library's own, inside the fields of events; it imports nothing."""
        return JsonSerializer(allowed_types=self.values())


def envelope_json(event: Event) -> str:
    """The envelope as JSON; numbers that JSON lacks (NaN, infinite) become null. Raises Unserialisable."""
    try:
        value = event.model_dump_json()
    except Exception as error:  # fields may have serializers of the flow's own
        raise Unserialisable(_why(event, error)) from None
    if not value.startswith("{"):
        raise Unserialisable(f"{type(event).__name__} is not written as a JSON object")
    return f'{{"value":{value},{_metadata(type(event))}'


def envelope(event: Event) -> dict[str, Any]:
    """The same as plain data. Raises Unserialisable."""
    made: dict[str, Any] = from_json(envelope_json(event))
    return made


def types_of(event: type[Event]) -> list[str] | None:
    """The names of the class's parents, nearest first, without `Event`; None when there is none."""
    return [parent.__name__ for parent in _parents(event)] or None


def without_qualified_name(data: str) -> str:
    """An envelope's JSON with `qualified_name` null."""
    made = from_json(data)
    made["qualified_name"] = None
    return to_json(made).decode()


def is_terminal(data: str) -> bool:
    """Whether an envelope's JSON is of an event that ends a run: a StopEvent or a class made from it."""
    if '"StopEvent"' not in data:  # cheap, and rarely wrong
        return False
    made = from_json(data)
    return made["type"] == "StopEvent" or "StopEvent" in (made["types"] or ())


def read(data: Any, registry: Mapping[str, type[Event]], explicit: type[Event] | None = None) -> Event:
    """The event that a client's data means.

    `data`: an object or the JSON text of one: `{type, value}`, `{qualified_name, value}` (the older form; `data` for `value`
    is older still) or, where `explicit` says which class is meant, its plain fields. Raises InvalidEvent.
    """
    known = registry if isinstance(registry, Registry) else Registry(registry.values())
    given = _object(data)
    if explicit is not None and not _is_envelope(given):
        return _validated(explicit, given, known)
    if "value" not in given and "data" in given:
        given = {**given, "value": given["data"]}
    event = _class(given, known)
    if "value" not in given:
        raise InvalidEvent(f"{event.__name__} is given without a value")
    return _validated(event, given["value"], known)


def _object(data: Any) -> dict[str, Any]:
    if isinstance(data, str):
        try:
            data = strict_json.loads(data)
        except strict_json.InvalidJson as error:
            raise InvalidEvent(
                f"An event is a JSON object or the text of one; this text is not JSON: {error}"
            ) from None
    if not isinstance(data, dict):
        raise InvalidEvent("An event is a JSON object or the text of one")
    return data


def _is_envelope(given: dict[str, Any]) -> bool:
    """Plain fields may be called `type`, `data` or `value` too; both names of a class, or one with a value, are an envelope's."""
    named = [name for name in ("type", "qualified_name") if name in given]
    return len(named) == 2 or (len(named) == 1 and "value" in given)


def _class(given: dict[str, Any], known: Registry) -> type[Event]:
    name, qualified = given.get("type"), given.get("qualified_name")
    if isinstance(name, str) and name in known:
        return known[name]
    if isinstance(qualified, str) and qualified in known.by_qualified_name:
        return known.by_qualified_name[qualified]
    if not name and not qualified:
        raise InvalidEvent("An event needs a type, the name of its class")
    shown = str(name or qualified)[:200]
    expected = ", ".join(known) or "none: no event is registered"
    raise InvalidEvent(
        f"Invalid event type: {shown}. It is not declared by this workflow: add_workflow(..., additional_events=[...]) "
        f"registers more. Expected one of {expected}"
    )


def _validated(event: type[Event], value: Any, known: Registry) -> Event:
    if not isinstance(value, dict):
        raise InvalidEvent(f"The value of {event.__name__} is not a JSON object")
    if not isinstance(value.get("_data", {}), dict):
        raise InvalidEvent(f"_data of {event.__name__} is not a JSON object")
    try:
        with known.decoder.validation_context():
            return event.model_validate(value)
    except ValidationError as error:
        raise InvalidEvent(f"{event.__name__}: {_faults(error)}") from None
    except Exception as error:  # validators of the flow's own, and names that the class's constructor does not take
        raise InvalidEvent(f"{event.__name__} cannot be made of this value: {type(error).__name__}") from None


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(map(str, fault['loc'])) or 'value'}: {fault['msg']}"[:300] for fault in faults[:_ERRORS_SHOWN]]
    more = len(faults) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _why(event: Event, error: Exception) -> str:
    name = type(event).__name__
    for field, value in _fields(event):
        try:
            to_json(value)
        except Exception:
            return f"{name}.{field} cannot be written as JSON: it is or contains what JSON has no form for ({_kind(value)})"
    return f"{name} cannot be written as JSON: {type(error).__name__}"


def _fields(event: Event) -> Iterator[tuple[str, Any]]:
    for name in type(event).model_fields:
        yield name, getattr(event, name, None)
    yield from event._data.items()
    if (result := getattr(event, "_result", None)) is not None:
        yield "result", result


def _kind(value: Any) -> str:
    return f"type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def _parents(event: type[Event]) -> Iterator[type[Event]]:
    for parent in event.__mro__[1:]:
        if parent is Event:
            return
        if issubclass(parent, Event):
            yield parent


def _names(event: type[Event]) -> set[str]:
    return {f"{event.__module__}.{event.__qualname__}", f"{event.__module__}.{event.__name__}"}


@lru_cache(maxsize=1024)
def _metadata(event: type[Event]) -> str:
    """What follows the value in an envelope of this class."""
    made = {
        "qualified_name": f"{event.__module__}.{event.__name__}",
        "type": event.__name__,
        "types": types_of(event),
    }
    return to_json(made).decode()[1:]

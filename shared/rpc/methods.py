"""What the methods of a port take and give, read from their annotations: both ends of a call are made from the same.

The two ends may be of neighbouring versions. So what is unknown is passed over where a call arrives, and where its answer
does; types are checked as ever, and a call with an argument that the port has not is a fault of whoever makes it.
"""

import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

MAX_BODY = 16 * 1024 * 1024  # bytes of a call; sidecars take no more either

_AS_JSON = ConfigDict(
    ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings", extra="ignore",
    arbitrary_types_allowed=False, protected_namespaces=(), hide_input_in_errors=True,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a port. `streams`: it gives an async iterator, of what `answer` describes."""

    name: str
    signature: inspect.Signature
    arguments: type[BaseModel]
    answer: TypeAdapter[Any]
    streams: bool

    def pack(self, args: tuple[Any, ...], named: dict[str, Any]) -> bytes:
        """The arguments of a call as JSON. Raises TypeError and ValidationError."""
        given = self.signature.bind(*args, **named).arguments
        return self.arguments(**given).model_dump_json().encode()

    def unpack(self, body: bytes) -> dict[str, Any]:
        """The same, as the method takes them. Raises pydantic's ValidationError."""
        found = self.arguments.model_validate_json(body)
        return {name: getattr(found, name) for name in self.arguments.model_fields}


def methods_of(port: type[Any]) -> dict[str, Method]:
    """The public methods of a Protocol and of those that it is made of, by their names."""
    found = inspect.getmembers(port, inspect.isfunction)
    return {name: _method(name, function) for name, function in found if not name.startswith("_")}


def port_name(port: type[Any]) -> str:
    """By which it is called: `AppPort` is `app`."""
    return port.__name__.removesuffix("Port").lower()


def _method(name: str, function: Callable[..., Any]) -> Method:
    hints = get_type_hints(function)
    own = inspect.signature(function)
    parameters = list(own.parameters.values())[1:]
    fields: dict[str, Any] = {
        one.name: (hints[one.name], ... if one.default is one.empty else one.default) for one in parameters
    }
    returns = hints["return"]
    streams = get_origin(returns) is AsyncIterator
    given = get_args(returns)[0] if streams else returns
    own_rules = isinstance(given, type) and issubclass(given, BaseModel)
    return Method(
        name=name, signature=own.replace(parameters=parameters), streams=streams,
        arguments=create_model(name, __config__=_AS_JSON, **fields),
        answer=TypeAdapter(given) if own_rules else TypeAdapter(given, config=_AS_JSON),
    )  # fmt: skip

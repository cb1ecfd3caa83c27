"""The routing table: which workers serve which endpoint. The app publishes it; `balance` and `routes` read it.

All methods run on the event loop's thread and never await, so a reader always sees a whole route.
"""

from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a worker's URL starts with http:// or https:// and names a host")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("a worker's URL holds no credentials, query or fragment")
    _ = parts.port  # raises ValueError when out of range
    return value.rstrip("/")


class Worker(BaseModel):
    """One OpenAI-compatible server that is ready. `url` is what stands before `/v1`.

    Where no connection of ours leads to the URL, `transport` does: whoever publishes the worker brings it, closes it
    when it is in no route any more, and publishes one transport for as long as it leads to the same place.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=(), arbitrary_types_allowed=True)

    id: str
    url: Annotated[str, AfterValidator(_base_url)]
    host: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$")  # the Host header, if not the URL's
    transport: httpx.AsyncBaseTransport | None = Field(None, repr=False, exclude=True)
    api_key: SecretStr | None = None
    capacity: int = Field(1, ge=1)  # requests that it answers at once

    @property
    def is_behind_another(self) -> bool:
        """Whether an answer may be that of a server before it: an ingress, or a cluster's API server."""
        return self.host is not None or self.transport is not None


class Route(BaseModel):
    """Where an endpoint's requests go.

    `model_name` is what the workers know the model by and what they are sent; `served_name` is what `/v1/models`
    shows. Clients may send either, one of the `aliases` (the endpoint's name, for one), or the endpoint's id.
    `adapters` are names of their own that the workers know too: variants of the model.
    `state` is the endpoint's, and `reason` a sentence for people on why it has no workers.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    endpoint_id: UUID
    project_id: UUID
    model_name: str
    served_name: str
    aliases: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    state: str
    reason: str | None = None
    workers: tuple[Worker, ...] = ()
    generation: int = 0
    created: int = 0  # Unix time, as `/v1/models` shows it

    @property
    def models(self) -> tuple[str, ...]:
        """The names that `/v1/models` lists, the model's own first."""
        return (self.served_name, *self.adapters)

    def name_for_worker(self, name: str | None) -> str | None:
        """What workers are sent for a name that a client has given; None for one that is not known here."""
        if name is None or name in (self.served_name, self.model_name, str(self.endpoint_id), *self.aliases):
            return self.model_name
        return name if name in self.adapters else None


Listener = Callable[[UUID, Route | None], None]


class RouteTable:
    def __init__(self) -> None:
        self._routes: dict[UUID, Route] = {}
        self._listeners: list[Listener] = []
        self.is_known = False  # set by who publishes, once all routes are in it

    def get(self, endpoint_id: UUID) -> Route | None:
        return self._routes.get(endpoint_id)

    def replace(self, endpoint_id: UUID, route: Route) -> bool:
        """Publishes a route. False, and no change, when a later generation of it is already there."""
        if route.endpoint_id != endpoint_id:
            raise ValueError("the route belongs to another endpoint")
        present = self._routes.get(endpoint_id)
        if present is not None and present.generation > route.generation:
            return False
        self._routes[endpoint_id] = route
        self._tell(endpoint_id, route)
        return True

    def remove(self, endpoint_id: UUID) -> None:
        if self._routes.pop(endpoint_id, None) is not None:
            self._tell(endpoint_id, None)

    def subscribe(self, listener: Listener) -> None:
        """Calls `listener` with every change, in order, within the call that makes it."""
        self._listeners.append(listener)

    def _tell(self, endpoint_id: UUID, route: Route | None) -> None:
        for listener in self._listeners:
            listener(endpoint_id, route)

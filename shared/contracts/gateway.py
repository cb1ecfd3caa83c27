"""What the app publishes to gateways: where endpoints' requests go, and who may send them."""

from uuid import UUID

from pydantic import BaseModel, Field


class PublishedWorker(BaseModel):
    """A server that is ready. `proxied`: through its cluster's API server, else straight to the URL."""

    id: str
    url: str
    host: str | None = None
    proxied: bool = False


class PublishedRoute(BaseModel):
    """One endpoint. `key` is for its workers; `capacity` is how many requests each of them answers at once. `adapters` are
    further names that the workers know.
    """

    endpoint_id: UUID
    project_id: UUID
    cluster_id: UUID
    name: str
    slug: str
    adapters: list[str] = Field(default_factory=list)
    state: str
    reason: str | None = None
    workers: list[PublishedWorker] = Field(default_factory=list)
    key: str = Field(repr=False)
    capacity: int = 1
    generation: int = 0
    created: int = 0  # Unix time


class PublishedCluster(BaseModel):
    """A cluster through whose API server workers are reached.

    Its kubeconfig is None when it is not registered any more, and empty when it cannot be opened.
    """

    id: UUID
    kubeconfig: bytes | None = Field(None, repr=False)


class PublishedTable(BaseModel):
    """All routes. `version` changes whenever anything in it does; unchanged tables come without routes."""

    version: str
    changed: bool
    routes: list[PublishedRoute] = Field(default_factory=list)
    clusters: list[PublishedCluster] = Field(default_factory=list)


class Shown(BaseModel):
    """What a request brought to say who it is, header by header."""

    authorization: str | None = Field(None, repr=False)
    cookie: str | None = Field(None, repr=False)
    origin: str | None = None
    host: str | None = None
    method: str = "POST"


class Admitted(BaseModel):
    """Who asks: `id` is of the key or of the session."""

    id: str
    user_id: UUID | None = None

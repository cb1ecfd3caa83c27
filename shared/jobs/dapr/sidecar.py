"""This service's Dapr sidecar: calls to other services, and the workflow engine's own operations.

Only this module and `worker` know Dapr's API. Both of the sidecar's tokens come from the settings.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
import structlog
from dapr.conf import settings as dapr_settings
from dapr.ext.workflow import DaprWorkflowClient

from shared.rpc.client import NO_ANSWER
from shared.rpc.identity import Identity
from shared.rpc.server import TOKEN_HEADER

CALL_SECONDS = 20  # of one call of Dapr's own client: it would wait for ever where a workflow cannot be ended
LOOK_EVERY = 0.25  # seconds between two looks whether the sidecar is there
_ENDED = ("COMPLETED", "FAILED", "TERMINATED")
_CONNECTIONS, _KEPT_SECONDS = 256, 30.0
_READY = aiohttp.ClientTimeout(total=2.0)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SidecarAddress:
    """Where the sidecar listens, on this machine or in this pod; `token` is what it wants of us.

    `prefix` begins the names by which sidecars know services, where several installations share a Dapr.
    """

    http_port: int
    grpc_port: int
    token: str = field(repr=False)
    host: str = "127.0.0.1"
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Hosting:
    """Whether workflows can begin here (`registered`), and how many connections of workers the sidecar has."""

    registered: bool
    workers: int


class Sidecar:
    """Implements `shared.rpc.client.Invoke`. Belongs to the event loop on which it is made.

    It uses aiohttp, whose calls cost an eighth of what httpx's do: of a step's time in our processes that was the most.
    """

    def __init__(self, address: SidecarAddress, identity: Identity) -> None:
        self.address = address
        self._identity = identity
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=_KEPT_SECONDS)
        self._http = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        self._base = f"http://{address.host}:{address.http_port}/v1.0"
        self._headers = {TOKEN_HEADER: address.token, "content-type": "application/json"}
        self._workflows: DaprWorkflowClient | None = None

    async def aclose(self) -> None:
        await self._http.close()
        if self._workflows is not None:
            await asyncio.to_thread(self._workflows.close)

    def way_to(self, service: str, path: str) -> tuple[str, dict[str, str]]:
        """URL and headers of a call."""
        url = f"{self._base}/invoke/{self.address.prefix}{service}/method/{path}"
        return url, self._headers | self._identity.headers_for(service)

    def post(
        self, service: str, path: str, body: bytes, headers: Mapping[str, str], timeout: float
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        url, own = self.way_to(service, path)
        limit = aiohttp.ClientTimeout(total=timeout)
        return self._http.post(url, data=body, headers={**own, **headers}, timeout=limit, allow_redirects=False)

    async def is_ready(self) -> bool:
        """Whether the sidecar can be used: its own components, not those of the services behind it."""
        try:
            async with self._http.get(
                f"{self._base}/healthz/outbound", headers=self._headers, timeout=_READY
            ) as answer:
                return answer.ok
        except NO_ANSWER:
            return False

    async def wait_ready(self) -> None:
        ready = await self.is_ready()
        while not ready:
            await asyncio.sleep(LOOK_EVERY)
            ready = await self.is_ready()

    # ---- workflows of this service

    async def hosting(self) -> "Hosting | None":
        """What the sidecar says of this service's workflows; None when it does not answer."""
        try:
            async with self._http.get(f"{self._base}/metadata", headers=self._headers, timeout=_READY) as answer:
                told = await answer.json()
            actors = [actor["type"] for actor in told["actorRuntime"].get("activeActors") or ()]
            workers = (told.get("workflows") or {}).get("connectedWorkers", 0)
        except (*NO_ANSWER, ValueError, LookupError, TypeError, aiohttp.ContentTypeError):
            return None
        return Hosting(any(kind.endswith(".workflow") for kind in actors), workers)

    async def schedule(self, name: str, instance: str, data: Any) -> None:
        """Start a workflow, unless it is there already."""
        try:
            await asyncio.to_thread(self._client.schedule_new_workflow, name, input=data, instance_id=instance)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.ALREADY_EXISTS and "already exists" not in (error.details() or ""):
                raise

    async def raise_event(self, instance: str, name: str) -> None:
        await asyncio.to_thread(self._client.raise_workflow_event, instance, name)

    async def forget(self, instance: str, *, terminate: bool) -> bool:
        """Whether the workflow is not there any more."""
        return await asyncio.to_thread(self._forget, instance, terminate)

    def _forget(self, instance: str, terminate: bool) -> bool:
        state = self._client.get_workflow_state(instance, fetch_payloads=False)
        if state is None:
            return True
        if state.runtime_status.name not in _ENDED:
            if not state.name:  # what came for it after its state was lost: it never begins, and so cannot be ended
                log.warning("workflow_lost", instance=instance)
                return True
            if not terminate:
                return False
            self._client.terminate_workflow(instance)
            self._client.wait_for_workflow_completion(instance, fetch_payloads=False, timeout_in_seconds=5)
        self._client.purge_workflow(instance)
        return True

    def show_token(self) -> None:
        """Dapr's own clients read it there, when they are made, and how long a call may take."""
        dapr_settings.DAPR_API_TIMEOUT_SECONDS = CALL_SECONDS  # type: ignore[attr-defined]  # made by its constructor
        dapr_settings.DAPR_API_TOKEN = self.address.token  # type: ignore[attr-defined]  # made by its constructor

    @property
    def _client(self) -> DaprWorkflowClient:
        if self._workflows is None:
            self.show_token()
            self._workflows = DaprWorkflowClient(self.address.host, str(self.address.grpc_port))
        return self._workflows

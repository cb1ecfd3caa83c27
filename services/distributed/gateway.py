"""The gateway as a service: requests come to it directly; routes and callers it asks of the app, through its sidecar."""

import asyncio

from starlette.applications import Starlette
from starlette.types import ASGIApp

from services.assembly.access import GatewayAccess
from services.assembly.publisher import Publisher
from services.cluster.sites.clients import Clients
from services.distributed.parts import ASK_PATIENCE, Parts
from services.gateway.limits import Limits
from services.gateway.metrics import Metrics as GatewayMetrics
from services.gateway.routes import Gateway
from services.gateway.routes import router as gateway_route
from services.gateway.table import RouteTable
from shared.contracts.ports import GatewayPort
from shared.http import guards
from shared.rpc.server import Served
from shared.security.kubeconfig_server import ServerPolicy
from shared.telemetry import metrics
from shared.telemetry.http import Seen
from shared.telemetry.probes import Health, Readiness


class GatewayService:
    def __init__(self, parts: Parts) -> None:
        settings = parts.settings
        app: GatewayPort = parts.app(GatewayPort, ASK_PATIENCE)
        self._table = RouteTable()
        self._clients = Clients()
        self._publisher = Publisher(app, self._table, self._clients, ServerPolicy.of(settings))
        self._metrics = metrics.registry()
        limits = Limits(rate_quota=settings.rate_quota, rate_seconds=settings.rate_window)
        self._gateway = Gateway(
            self._table, GatewayAccess(app), limits, refresh=self._publisher.refresh, metrics=GatewayMetrics(self._metrics)
        )  # fmt: skip
        self._readiness = Readiness({"routes": self._table_known})
        self._publishing: asyncio.Task[None] | None = None
        self.public: ASGIApp | None = _guarded(self._gateway, settings.answered_hosts, settings.cors_origins)
        self.ports: list[Served] = []

    async def start(self, health: Health) -> None:
        health.starting = "waiting for the app's routes"
        self._publishing = asyncio.create_task(self._publisher.run(), name="publisher")
        await self._publisher.published.wait()
        health.dead, health.missing, health.exposition = self._dead, self._readiness.missing, self._exposition

    async def stop(self, seconds: float) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
        await self._gateway.aclose()
        await self._clients.aclose()

    def _dead(self) -> list[str]:
        return ["publisher"] if self._publishing is not None and self._publishing.done() else []

    async def _table_known(self) -> bool:
        return self._publisher.published.is_set()

    async def _exposition(self) -> bytes:
        return metrics.exposition(self._metrics)


def _guarded(gateway: Gateway, hosts: list[str], origins: list[str]) -> ASGIApp:
    app = Starlette(routes=[gateway_route(gateway)])
    guards.install(app, allowed_hosts=hosts, cors_origins=origins, body_limits=[(r"/endpoints/[^/]+/v1/", None)])
    app.add_middleware(Seen)
    return app

"""Runs one service: its listeners first, for the sidecar waits for them, then the service, until it is told to stop."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import structlog
from starlette.applications import Starlette
from starlette.types import ASGIApp

from services.assembly.process import (
    Server,
    configure_logs,
    listen,
    make_server,
    plainly,
    run_on_loop,
    serve_probes,
    stop_signals,
    until_started,
)
from services.distributed.parts import Parts, Service
from shared.rpc.server import Served, routes
from shared.settings import Settings
from shared.telemetry import traces
from shared.telemetry.probes import Health
from shared.telemetry.server import ProbeServer

STOP_SECONDS = 10.0  # within the 30 that Kubernetes gives

log = structlog.get_logger(__name__)

Make = Callable[[Parts], Service]


def run_service(settings: Settings, name: str, make: Make, ready_file: Path | None = None) -> NoReturn:
    """Run until SIGTERM or Ctrl-C, then end the process."""
    configure_logs(settings.log_format == "json" if settings.log_format != "auto" else None)

    async def main() -> int:
        return await _serve(Parts.of(settings, name), make, ready_file)

    code = plainly(lambda: run_on_loop(main))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Dapr's client may have threads that wait for a sidecar which is gone


async def _serve(parts: Parts, make: Make, ready_file: Path | None) -> int:
    stop = stop_signals()
    process = _Process(parts, make, ready_file)
    starting = asyncio.create_task(process.start(), name="start")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting}, timeout=STOP_SECONDS)
            return 0
        ended = starting.result()
        waits: set[asyncio.Future[Any]] = {ended, stopped}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return 0 if stop.is_set() else 1
    finally:
        log.info("stopping", service=parts.service)
        await process.stop()


class _Process:
    def __init__(self, parts: Parts, make: Make, ready_file: Path | None) -> None:
        self._parts = parts
        self._make = make
        self._ready_file = ready_file
        self._health = Health()
        self._probes: ProbeServer | None = None
        self._listeners: list[socket.socket] = []
        self._serving: list[tuple[Server, asyncio.Task[None]]] = []
        self._service: Service | None = None

    async def start(self) -> "asyncio.Future[list[None]]":
        """Returns what ends when the process cannot go on."""
        parts, settings = self._parts, self._parts.settings
        self._health.watch_loop()
        self._probes = serve_probes(settings, self._health)
        traces.start(settings.otlp_endpoint, service=f"stepway-{parts.service}", ratio=settings.trace_ratio)
        self._health.starting = "starting the service"
        self._service = service = self._make(parts)
        await self._listen("127.0.0.1", settings.internal_port, _internal(service.ports, parts))
        await service.start(self._health)
        port = None
        if service.public is not None:
            port = await self._listen(settings.host, settings.port, service.public)
        self._health.starting = None
        self._announce(port)
        return asyncio.gather(*(task for _, task in self._serving))

    async def stop(self) -> None:
        if self._ready_file is not None:
            self._ready_file.unlink(missing_ok=True)
        for server, _ in self._serving[1:]:
            server.should_exit = True
        if self._service is not None:
            await self._service.stop(STOP_SECONDS - 2.0)
        for server, task in self._serving:  # what the sidecar still asks is answered until the service has ended
            server.should_exit = server.force_exit = True
            await asyncio.wait({task}, timeout=0.5)
        await self._parts.sidecar.aclose()
        await asyncio.to_thread(traces.stop, 1.0)
        if self._probes is not None:
            await asyncio.to_thread(self._probes.close)
        self._health.close()
        for listener in self._listeners:
            listener.close()

    async def _listen(self, host: str, port: int, app: ASGIApp) -> int:
        listener = listen(host, port)
        self._listeners.append(listener)
        server = make_server(app)
        task = asyncio.create_task(server.serve(sockets=[listener]), name=f"http-{len(self._serving)}")
        self._serving.append((server, task))
        await until_started(server, task)
        found: int = listener.getsockname()[1]
        return found

    def _announce(self, port: int | None) -> None:
        log.info("service_ready", service=self._parts.service, port=port)
        if self._ready_file is not None:
            content = json.dumps({"service": self._parts.service, "port": port, "pid": os.getpid()}) + "\n"
            part = self._ready_file.with_name(f".{self._ready_file.name}.{os.getpid()}")
            part.write_text(content)
            part.replace(self._ready_file)


def _internal(ports: list[Served], parts: Parts) -> Starlette:
    """What the sidecar reaches, and nobody else: the listener is on the loopback address."""
    return Starlette(routes=routes(ports, parts.identity, parts.app_token))

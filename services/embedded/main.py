"""`stepway up`: one process with everything in it, from the data directory to the port, and back down within 5 seconds."""

import asyncio
import json
import os
import socket
from pathlib import Path

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.app.identity import sealed
from services.assembly.process import (
    Say,
    Server,
    StartError,
    configure_logs,
    listen,
    make_server,
    plainly,
    run_on_loop,
    say_aloud,
    serve_probes,
    stop_signals,
    until_started,
)
from services.embedded.assembly import Assembly
from services.embedded.folder import DataFolder, Places, write_private
from shared.db import migrate
from shared.db.engine import Database
from shared.objects.blocking import settled
from shared.security.envelope import Keyring
from shared.settings import Settings
from shared.telemetry import traces
from shared.telemetry.probes import Health
from shared.telemetry.server import ProbeServer
from stepway.postgres.embedded import EmbeddedPostgres

WATCH_EVERY = 0.5  # seconds between two looks at PostgreSQL
STOP_SECONDS = 3.6  # for everything, of the five that are promised; the rest is for a busy machine

log = structlog.get_logger(__name__)


def run_up(
    settings: Settings, ready_file: Path | None = None, *, json_logs: bool | None = None, say: Say = say_aloud
) -> int:
    """Run until SIGTERM or Ctrl-C; returns the exit code. `say` gets the few sentences that are for a person."""
    if json_logs is None and settings.log_format != "auto":
        json_logs = settings.log_format == "json"
    configure_logs(json_logs)
    return plainly(lambda: run_on_loop(lambda: _up(settings, ready_file, say)))


async def _up(settings: Settings, ready_file: Path | None, say: Say) -> int:
    stop = stop_signals()
    places = Places.of(settings)
    folder = DataFolder(places)
    folder.open()
    instance = _Instance(settings, places, ready_file, say)
    starting = asyncio.create_task(instance.start(), name="start")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            await _give_up(starting)
            return 0
        serving, watching = starting.result(), asyncio.create_task(instance.watch(), name="watch-postgres")
        await asyncio.wait({serving, watching, stopped}, return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
        if not stop.is_set():
            await (watching if watching.done() else serving)
            return 1
        watching.cancel()
        return 0
    finally:
        await instance.stop()
        folder.close()


async def _give_up(starting: "asyncio.Task[asyncio.Task[None]]") -> None:
    """Told to stop before the start was over. PostgreSQL may be busy with its recovery: then it goes down with us."""
    starting.cancel()
    await asyncio.wait({starting}, timeout=STOP_SECONDS - 1.5)
    if not starting.done():
        log.warning("start_does_not_end")
        os._exit(1)


class _Instance:
    """What has been started, so that it can be stopped wherever the start has come to."""

    def __init__(self, settings: Settings, places: Places, ready_file: Path | None, say: Say) -> None:
        self._settings = settings
        self._places = places
        self._ready_file = ready_file
        self._say = say
        self._listener: socket.socket | None = None
        self._postgres: EmbeddedPostgres | None = None
        self._assembly: Assembly | None = None
        self._health = Health()
        self._probes: ProbeServer | None = None
        self._server: Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> "asyncio.Task[None]":
        """Start everything, and tell whoever waits for it. Returns the task that serves HTTP."""
        if self._ready_file is not None:
            self._ready_file.unlink(missing_ok=True)  # one that was killed has left it
        self._listener = listen(self._settings.host, self._settings.port)
        self._settings.port = self._listener.getsockname()[1]  # by which flows find the gateway
        self._health.watch_loop()
        self._probes = serve_probes(self._settings, self._health)
        traces.start(self._settings.otlp_endpoint, service="stepway", ratio=self._settings.trace_ratio)
        self._health.starting = "starting the database"
        url = self._settings.database_url
        if url is None:
            self._postgres = EmbeddedPostgres(self._places.postgres)
            url = await settled(self._postgres.start)
        self._health.starting = "migrating the database"
        await settled(_migrate, url)
        self._health.starting = "starting the services"
        self._assembly = Assembly(self._settings, self._places, url, await _keyring(self._places, url))
        key = await self._assembly.start()
        self._server = make_server(self._assembly.app)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="http")
        await until_started(self._server, self._serving)
        health = self._health
        health.dead, health.missing = self._assembly.dead, self._assembly.readiness.missing
        health.exposition, health.starting = self._assembly.exposition, None
        self._announce(self._listener.getsockname()[1], key, await self._assembly.admin_key_file())
        return self._serving

    async def watch(self) -> None:
        """Start PostgreSQL again when it has ended by itself: by someone's hand, or for want of memory."""
        postgres = self._postgres
        while True:
            await asyncio.sleep(WATCH_EVERY)
            if postgres is None or postgres.running:
                continue
            log.error("postgres_ended")
            await asyncio.to_thread(postgres.stop)
            url = await settled(postgres.start)
            if self._assembly is not None and url != self._assembly.database.url:
                raise StartError("PostgreSQL ended by itself, and is at another address now: start Stepway again.")

    async def stop(self) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + STOP_SECONDS
        if self._ready_file is not None and self._listener is not None:
            self._ready_file.unlink(missing_ok=True)
        if self._server is not None:
            self._server.should_exit = True
        if self._assembly is not None:
            await self._assembly.stop(end - 1.2 - clock())
        if self._server is not None and self._serving is not None:
            self._server.force_exit = True
            await asyncio.wait({self._serving}, timeout=0.3)
        await asyncio.to_thread(traces.stop, max(min(end - clock() - 1.0, 1.0), 0.1))
        if self._postgres is not None:
            await asyncio.to_thread(self._postgres.stop, max(end - clock(), 0.5))
        if self._probes is not None:
            await asyncio.to_thread(self._probes.close)
        self._health.close()
        if self._listener is not None:
            self._listener.close()

    def _announce(self, port: int, key: str | None, key_file: Path | None) -> None:
        host = self._settings.host
        if host in ("0.0.0.0", "::"):  # noqa: S104 (a comparison)
            host = "127.0.0.1"
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if key is not None:
            self._say(f"The admin's key, shown this once (kept in {self._places.admin_key}): {key}")
        self._say(f"Stepway is ready at {url}")
        if self._ready_file is not None:
            content = {"url": url, "admin_key_file": str(key_file) if key_file else None, "pid": os.getpid()}
            write_private(self._ready_file, json.dumps(content) + "\n")


def _migrate(url: str) -> None:
    try:
        migrate.upgrade(url)
    except DBAPIError:
        raise
    except Exception as error:
        raise StartError(f"The database cannot be brought up to date: {type(error).__name__}: {error}") from error


async def _keyring(places: Places, url: str) -> Keyring:
    """The encryption key: made at the first start. Never made again, for what is sealed could not be opened."""
    database = Database(url, pool_size=1)
    try:
        async with database.transaction() as session:
            used = await session.scalar(text('SELECT EXISTS (SELECT 1 FROM platform."user")'))
            needed = await sealed.keys_in_use(session)
    finally:
        await database.close()
    if used and not places.key.exists():
        raise StartError(
            f"The encryption key {places.key} is missing, but the database has data that it protects. Restore it."
        )
    keyring = await asyncio.to_thread(Keyring.load_or_create, places.key)
    if needed and needed.isdisjoint(keyring.key_ids):
        raise StartError(
            f"The encryption key {places.key} is another installation's: it opens nothing in the database."
        )
    return keyring

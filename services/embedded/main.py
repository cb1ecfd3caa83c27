"""`stepway up`: one process with everything in it, from the data directory to the port, and back down within 5 seconds."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import structlog
import uvicorn
from sqlalchemy import text

from services.embedded.assembly import Assembly
from services.embedded.folder import DataFolder, Places, StartError, write_private
from shared import log as logging
from shared.db import migrate
from shared.db.embedded import EmbeddedPostgres, PostgresError
from shared.db.engine import Database
from shared.security.envelope import Keyring, SealError
from shared.settings import Settings

log = structlog.get_logger(__name__)

Say = Callable[[str], None]


def run_up(
    settings: Settings, ready_file: Path | None = None, *, json_logs: bool | None = None, say: Say = print
) -> int:
    """Run until SIGTERM or Ctrl-C; returns the exit code. `say` gets the few sentences that are for a person."""
    logging.configure(json=json_logs)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_up(settings, ready_file, say))
    except (StartError, PostgresError, SealError) as error:
        print(f"stepway: {error}", file=sys.stderr)  # noqa: T201 (the last word to whoever started it)
        return 1


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on every platform
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _up(settings: Settings, ready_file: Path | None, say: Say) -> int:
    stop = _signals()
    places = Places.of(settings)
    folder = DataFolder(places)
    folder.open()
    listener = _listen(settings)
    postgres: EmbeddedPostgres | None = None
    assembly: Assembly | None = None
    try:
        url = settings.database_url
        if url is None:
            postgres = EmbeddedPostgres(places.postgres)
            url = await asyncio.to_thread(postgres.start)
        await asyncio.to_thread(_migrate, url)
        assembly = Assembly(settings, places, url, await _keyring(places, url))
        key = await assembly.start()
        server = _server(assembly)
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        await _until_started(server, serving)
        _announce(settings, places, listener, ready_file, key, say)
        await asyncio.wait({serving, asyncio.ensure_future(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
        server.should_exit = True
        await assembly.stop()
        server.force_exit = True
        await asyncio.wait({serving}, timeout=0.5)
        assembly = None
    finally:
        if assembly is not None:
            await assembly.stop()
        if postgres is not None:
            await asyncio.to_thread(postgres.stop, 1.5)
        listener.close()
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        folder.close()
    return 0


def _signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _listen(settings: Settings) -> socket.socket:
    """The port, taken before anything is started."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise StartError(
            f"Cannot listen on {settings.host}:{settings.port}: {reason}. Choose another --port."
        ) from error
    listener.setblocking(False)
    return listener


def _migrate(url: str) -> None:
    try:
        migrate.upgrade(url)
    except Exception as error:
        raise StartError(f"The database cannot be brought up to date: {type(error).__name__}: {error}") from error


async def _keyring(places: Places, url: str) -> Keyring:
    """The encryption key: made at the first start. Never made again, for what is sealed could not be opened."""
    if places.key.exists():
        return await asyncio.to_thread(Keyring.load, places.key)
    database = Database(url, pool_size=1)
    try:
        async with database.statement() as connection:
            used = await connection.scalar(text('SELECT EXISTS (SELECT 1 FROM platform."user")'))
    finally:
        await database.close()
    if used:
        raise StartError(
            f"The encryption key {places.key} is missing, but the database has data that it protects. Restore it."
        )
    return await asyncio.to_thread(Keyring.load_or_create, places.key)


def _server(assembly: Assembly) -> uvicorn.Server:
    config = uvicorn.Config(
        assembly.app, lifespan="off", log_config=None, access_log=False, server_header=False, date_header=True,
        timeout_graceful_shutdown=1, timeout_keep_alive=75, proxy_headers=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # ours are in place
    return server


async def _until_started(server: uvicorn.Server, serving: "asyncio.Task[None]") -> None:
    while not server.started:
        if serving.done():
            raise StartError("The HTTP server did not start.")
        await asyncio.sleep(0.01)


def _announce(
    settings: Settings, places: Places, listener: socket.socket, ready_file: Path | None, key: str | None, say: Say
) -> None:
    host, port = settings.host, listener.getsockname()[1]
    if host in ("0.0.0.0", "::"):  # noqa: S104 (a comparison)
        host = "127.0.0.1"
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if key is not None:
        say(f"The admin's key, shown this once (kept in {places.admin_key}): {key}")
    say(f"Stepway is ready at {url}")
    if ready_file is not None:
        content = {"url": url, "admin_key_file": str(places.admin_key), "pid": os.getpid()}
        write_private(ready_file, json.dumps(content) + "\n")

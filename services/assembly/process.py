"""What makes a process of ours: its signals, its listeners, its logs, and the last word when it cannot go on."""

import asyncio
import contextlib
import errno
import gc
import logging as standard_logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import structlog
import uvicorn
from sqlalchemy.exc import DBAPIError

from shared import log as logging
from shared.objects.store import StoreRefused
from shared.security.envelope import SealError
from shared.settings import Settings
from shared.telemetry.probes import Health
from shared.telemetry.server import ProbeServer
from stepway.postgres.embedded import PostgresError

QUIET = (
    "alembic",
    "httpx",
    "httpcore",
    "uvicorn",
    "huggingface_hub",
    "asyncio",
    "durabletask-worker",
    "durabletask-client",
    "WorkflowRuntime",
)  # their news are of no use here

Say = Callable[[str], None]

log = structlog.get_logger(__name__)


class StartError(Exception):
    """Stepway cannot start; the text is a sentence for whoever started it."""


def say_aloud(sentence: str) -> None:
    """To whoever started this, at once, also through a pipe."""
    print(sentence, flush=True)  # noqa: T201 (it is for a person, not for the log)


def configure_logs(json_logs: bool | None = None) -> None:
    logging.configure(json=json_logs)
    for name in QUIET:
        standard_logging.getLogger(name).setLevel(standard_logging.WARNING)


def plainly(command: Callable[[], int]) -> int:
    """The command's exit code. What keeps it from its work becomes a sentence on standard error, and the code 1."""
    try:
        return command()
    except (StartError, PostgresError, SealError, StoreRefused) as error:
        return _complain(str(error))
    except DBAPIError as error:
        return _complain(f"The database failed: {str(error.orig).strip().partition(chr(10))[0]}.")
    except OSError as error:
        return _complain(f"{error.filename or 'A file or connection'} cannot be used: {why(error)}.")


def why(error: OSError) -> str:
    """The fault in a few words for a person."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return (error.strerror or type(error).__name__).lower()


def _complain(sentence: str) -> int:
    print(f"stepway: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 (the last word to whoever started it)
    return 1


def run_on_loop(main: Callable[[], Any]) -> int:
    """Run a coroutine to its end on the fastest event loop that there is."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        code: int = runner.run(main())
        return code


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on every platform
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class Server(uvicorn.Server):
    """Leaves the signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Any) -> Server:
    """Of a process whose parts are all there: they are not looked at again whenever garbage is collected."""
    gc.collect()
    gc.freeze()
    return Server(uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, server_header=False, date_header=True,
        timeout_graceful_shutdown=1, timeout_keep_alive=75, proxy_headers=False,
    ))  # fmt: skip


async def until_started(server: uvicorn.Server, serving: "asyncio.Task[None]") -> None:
    while not server.started:
        if serving.done():
            raise StartError("The HTTP server did not start.")
        await asyncio.sleep(0.01)


def stop_signals() -> asyncio.Event:
    """Set by SIGTERM and Ctrl-C."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def listen(host: str, port: int, hint: str = "Choose another --port.") -> socket.socket:
    """The port, taken before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = why(error) if isinstance(error, OSError) else "there is no such port"
        raise StartError(f"Cannot listen on {host}:{port}: {reason}. {hint}") from error
    listener.setblocking(False)
    return listener


def serve_probes(settings: Settings, health: Health) -> ProbeServer | None:
    """Metrics and probes on a port of their own, where the settings name one."""
    if settings.metrics_port is None:
        return None
    try:
        server = ProbeServer(health, settings.metrics_host, settings.metrics_port)
    except (OSError, OverflowError) as error:
        reason = why(error) if isinstance(error, OSError) else "there is no such port"
        raise StartError(f"Cannot listen on {settings.metrics_host}:{settings.metrics_port}: {reason}.") from error
    log.info("metrics_served", host=settings.metrics_host, port=server.port)
    return server

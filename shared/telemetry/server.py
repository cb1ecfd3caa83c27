"""Metrics and probes on a port of their own, served by a thread: it answers while the event loop hangs or has not begun.

| path | 200 when |
|---|---|
| `/startupz` | the start is over; before, it says what it is busy with |
| `/livez` | the process lives (see `probes`) |
| `/readyz` | it can serve |
| `/metrics` | always, from the start's end |

Nobody is asked who they are: the port is for the host or the cluster, and never for the public.
"""

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

import structlog

from shared.http.guards import host_matcher
from shared.telemetry.metrics import CONTENT_TYPE
from shared.telemetry.probes import Health

AT_ONCE = 16  # connections
SLOW_CLIENT = 5.0  # seconds
READY_SECONDS = 4.0
METRICS_SECONDS = 8.0
LOCAL = ("localhost", "127.0.0.1", "[::1]")

log = structlog.get_logger(__name__)


class _Listener(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], health: Health, hosts: Sequence[str]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.health = health
        self.allows = host_matcher(hosts)
        self._places = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """As HTTPServer's, without its question to the name service."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, most of all."""
        log.debug("probe_not_answered")


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    timeout = SLOW_CLIENT
    server_version, sys_version = "stepway", ""

    def do_GET(self) -> None:
        if not self.server.allows([value.encode("latin-1") for value in self.headers.get_all("host", [])]):
            self._say(421, "This server does not answer under that host name.\n")
            return
        match self.path:
            case "/livez":
                self._judge(self.server.health.faults())
            case "/startupz":
                self._judge(self._unfinished())
            case "/readyz":
                self._judge(self._unfinished() or self._missing())
            case "/metrics":
                self._metrics()
            case _:
                self._say(404, "There is /livez, /readyz, /startupz and /metrics.\n")

    do_HEAD = do_GET

    def _unfinished(self) -> list[str]:
        busy = self.server.health.starting
        return [] if busy is None else [busy]

    def _missing(self) -> list[str]:
        health = self.server.health
        try:
            return [] if health.missing is None else health.ask(health.missing, READY_SECONDS)
        except TimeoutError:
            return ["no answer in time"]

    def _judge(self, faults: list[str]) -> None:
        self._say(503 if faults else 200, "".join(f"{fault}\n" for fault in faults) or "ok\n")

    def _metrics(self) -> None:
        health = self.server.health
        if health.exposition is None:
            self._say(503, "Not started yet.\n")
            return
        try:
            text = health.ask(health.exposition, METRICS_SECONDS)
        except TimeoutError:
            self._say(503, "No answer in time.\n")
            return
        self._say(200, text.decode(), CONTENT_TYPE)

    def _say(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: they are asked every few seconds, for ever."""


class ProbeServer:
    """Listens when it is made (OSError when it cannot). `port` is the one it got, where 0 was asked for."""

    def __init__(self, health: Health, host: str, port: int) -> None:
        # A page in somebody's browser must not read them under a name of its own.
        hosts = LOCAL if _is_loopback(host) else ("*",)
        self._listener = _Listener((host.strip("[]"), port), health, hosts)
        self.port: int = self._listener.server_port
        self._thread = threading.Thread(target=self._listener.serve_forever, name="probes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown()
            self._listener.server_close()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

"""Small HTTP servers for tests: files with ranges and validators, and faults that a test asks for.

`tests.hub` is the one that speaks a hub's routes. Everything listens on a free port, of 127.0.0.1 unless told otherwise.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass
class Fault:
    """What goes wrong at a request whose path ends with `at`, `times` times, after `skip` that go well."""

    at: str
    times: int = 1
    skip: int = 0
    status: int | None = None  # answer with this and `headers`
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of the body, then the connection is closed
    pause_after: int | None = None  # bytes of the body, then nothing until `server.resume`
    corrupt: bool = False  # one byte is another
    ignore_range: bool = False
    announce: int | None = None  # a false Content-Length
    method: str | None = None


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]


Body = bytes | Path


class Server:
    """Use as `with Server() as server`. Subclasses answer in `answer`."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self.seen: list[Seen] = []
        self.sent = 0  # bytes of bodies
        self.resume = threading.Event()
        self.paused = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner._handle(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """A client that hangs up is what many tests do."""

        self._server = Quiet((host, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, fault: Fault) -> None:
        self._faults.append(fault)

    def calm(self) -> None:
        """No more faults."""
        self._faults.clear()

    def asked(self, ending: str, method: str | None = None) -> list[Seen]:
        """Requests whose path without the query ends so."""
        return [
            item for item in self.seen if item.path.split("?")[0].endswith(ending) and method in (None, item.method)
        ]

    def answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        raise NotImplementedError

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        with self._lock:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.seen.append(Seen(request.command, request.path, headers))
            fault = self._due(request.path.split("?")[0], request.command)
        try:
            if fault and fault.status is not None:
                send(request, fault.status, b"{}", fault.headers)
            else:
                self.answer(request, fault)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True

    def _due(self, path: str, method: str) -> Fault | None:
        for fault in self._faults:
            if not path.endswith(fault.at) or not fault.times or fault.method not in (None, method):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            return fault
        return None

    def send_file(
        self, request: BaseHTTPRequestHandler, body: Body, headers: dict[str, str], fault: Fault | None
    ) -> None:
        """Answer with a file or the range that is asked for, as the fault says."""
        fault = fault or Fault("")
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        start, end = 0, size
        status = 200
        asked = request.headers.get("Range")
        condition = request.headers.get("If-Range")
        fresh = condition is None or condition in (headers.get("ETag"), headers.get("Last-Modified"))
        if asked and fresh and not fault.ignore_range and "Accept-Ranges" in headers:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(size, int(last) + 1) if last else size
            if start >= size:
                send(request, 416, b"", {"Content-Range": f"bytes */{size}"})
                return
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
        length = end - start if fault.announce is None else fault.announce
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            if value:
                request.send_header(name, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        stop = start + fault.cut_after if fault.cut_after is not None else end
        self._send_part(request, body, start, min(stop, end), fault)
        if stop < end or length != end - start:
            request.close_connection = True

    def _send_part(self, request: BaseHTTPRequestHandler, body: Body, start: int, end: int, fault: Fault) -> None:
        pause = start + fault.pause_after if fault.pause_after is not None else None
        if isinstance(body, Path):
            with body.open("rb") as file:
                request.wfile.flush()
                request.connection.sendfile(file, start, end - start)
        else:
            data = bytearray(body[start:end])
            if fault.corrupt:
                data[len(data) // 2] ^= 0xFF
            if pause is not None:
                request.wfile.write(data[: pause - start])
                request.wfile.flush()
                self.paused.set()
                self.resume.wait()
                data = data[pause - start :]
            request.wfile.write(data)
        with self._lock:
            self.sent += end - start


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


Route = Callable[[BaseHTTPRequestHandler, "Fault | None"], None]


class FileServer(Server):
    """Files at paths, redirects, and routes of a test's own."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__(host)
        self._files: dict[str, tuple[Body, dict[str, str]]] = {}
        self._redirects: dict[str, str] = {}
        self._routes: dict[str, Route] = {}

    def add(self, path: str, body: Body, *, etag: str | None = '"1"', ranges: bool = True, **headers: str) -> str:
        """Its URL. Header names are given with underscores."""
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        if etag:
            named["ETag"] = etag
        if ranges:
            named["Accept-Ranges"] = "bytes"
        self._files[path] = (body, named)
        return self.url + path

    def redirect(self, path: str, target: str) -> str:
        self._redirects[path] = target
        return self.url + path

    def route(self, path: str, route: Route) -> str:
        self._routes[path] = route
        return self.url + path

    def answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        path = request.path.split("?")[0]
        if path in self._redirects:
            send(request, 302, b"", {"Location": self._redirects[path]})
        elif path in self._routes:
            self._routes[path](request, fault)
        elif path in self._files:
            self.send_file(request, *self._files[path], fault)
        else:
            send(request, 404, b"not here", {})

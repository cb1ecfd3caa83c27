"""A receiver of traces for tests: a real HTTP server that speaks OTLP's protobuf, as a collector does. It is no collector:
it keeps what comes, and says so in its answers' `Server` header.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Got:
    """One span. Ids as hex; `parent` is empty for the first of a trace."""

    name: str
    trace: str
    id: str
    parent: str
    process: str
    failed: bool
    attributes: dict[str, Any]


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"
    server_version, sys_version = "stepway-test-receiver", ""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/v1/traces" or self.headers["content-type"] != "application/x-protobuf":
            self.send_error(404)
            return
        self.server.receiver.take(body)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    receiver: "Receiver"


class Receiver:
    """`with Receiver() as traces:` listens at `traces.url`; `spans` is all that has come so far."""

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.receiver = self
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.spans: list[Got] = []
        self.raw: list[bytes] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for one in request.resource_spans:
            process = _values(one.resource.attributes)["service.instance.id"]
            for scope in one.scope_spans:
                self.spans += [
                    Got(
                        span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), process,
                        span.status.code == 2, _values(span.attributes),
                    )
                    for span in scope.spans
                ]  # fmt: skip
        self.raw.append(body)

    def named(self, name: str) -> list[Got]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Got:
        """The only span of that name, once it has come."""
        found: Got
        (found,) = self.until(lambda: self.named(name), what=name)
        return found

    def until(self, look: Callable[[], Any], *, what: str = "spans") -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (seen := look()):
            assert time.monotonic() < deadline, (what, sorted(span.name for span in self.spans))
            time.sleep(0.02)
        return seen


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}

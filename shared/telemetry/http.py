"""Each request as a span, two series and a trace id for its log lines. Plain ASGI; stands outermost.

Names are the templates of routes: neither paths nor queries nor anything else that a client chose is told, but the trace
that it belongs to, by `traceparent`, which the answer bears too.
"""

import time

from opentelemetry.trace import Span, SpanKind
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.telemetry import traces
from shared.telemetry.metrics import REQUEST_SECONDS, REQUESTS

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
UNTRACED = frozenset(("/healthz", "/readyz"))  # asked every few seconds, for ever
UNMATCHED = "unmatched"


class Seen:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        if scope["path"] in UNTRACED:
            await _Answer(scope, method, send).run(self.app, receive)
            return
        with traces.span(method, parent=_traceparent(scope), remote=True, root=True, kind=SpanKind.SERVER) as span:
            await _Answer(scope, method, send, span).run(self.app, receive)


class _Answer:
    """The answer to one request, as far as it is told about."""

    __slots__ = ("_began", "_method", "_scope", "_send", "_span", "_status")

    def __init__(self, scope: Scope, method: str, send: Send, span: Span | None = None) -> None:
        self._scope = scope
        self._method = method
        self._send = send
        self._span = span
        self._status: int | None = None
        self._began = time.monotonic()

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        try:
            await app(self._scope, receive, self._answer)
        finally:
            route = route_of(self._scope)
            shown = "lost" if self._status is None else f"{self._status // 100}xx"
            REQUESTS.labels(route, self._method, shown).inc()
            if self._span is not None and self._span.is_recording():
                self._describe(self._span, route)

    async def _answer(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._span is not None and (present := traces.traceparent_of(self._span)) is not None:
                message["headers"] = [*message["headers"], (b"traceparent", present.encode())]
            REQUEST_SECONDS.labels(route_of(self._scope), self._method).observe(time.monotonic() - self._began)
        await self._send(message)

    def _describe(self, span: Span, route: str) -> None:
        span.update_name(f"{self._method} {route}")
        span.set_attribute("http.request.method", self._method)
        span.set_attribute("http.route", route)
        if self._status is not None:
            span.set_attribute("http.response.status_code", self._status)
            if self._status >= 500:
                traces.fail(span, str(self._status))


class NamedRoute(Route):
    """A route to a plain ASGI application, which tells its template as FastAPI's own do."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        return match, {**found, "route": self}


def route_of(scope: Scope) -> str:
    """The template of the route that was found, as `/jobs/{job_id}`."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) and path else UNMATCHED


def _traceparent(scope: Scope) -> str | None:
    values = [value for name, value in scope["headers"] if name == b"traceparent"]
    return values[0].decode("latin-1") if len(values) == 1 else None

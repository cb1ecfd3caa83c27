"""What stands before every route: ids and headers, hosts, origins, sizes. Plain ASGI, so that it costs little.

`install(app, …)` puts them in their order. From the outside in: the edge (request id, security headers, a fault that
nobody handled), the Host header, cross-origin requests, the size of the body, and HEAD as GET.
"""

import asyncio
import itertools
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import log
from shared.errors import Problem
from shared.http.problems import ProblemResponse, internal, response_for

REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{8,64}")
HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_][a-z0-9._\-]*)(:\d{1,5})?")
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
CONTENT_POLICY, TYPE = b"content-security-policy", b"content-type"
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (CONTENT_POLICY, b"default-src 'none'; frame-ancestors 'none'"),
]
SECURITY_NAMES = frozenset(name for name, _ in SECURITY_HEADERS)
PROCESS = secrets.token_hex(8).encode()  # the start of the request ids that this process gives
MAX_BODY = 2 * 1024 * 1024  # bytes
EXTRA_HEADERS = "stepway.headers"
CORS_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
CORS_REQUEST_HEADERS = (
    "Authorization", "Content-Type", "Idempotency-Key", "If-Match", "Last-Event-ID", "Traceparent", "X-Request-Id",
)  # fmt: skip
CORS_ANSWER_HEADERS = (
    "ETag", "Idempotency-Replayed", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "Traceparent",
    "X-Request-Id",
)  # fmt: skip


def install(
    app: Starlette,
    *,
    allowed_hosts: Sequence[str],
    cors_origins: Sequence[str] = (),
    max_body: int = MAX_BODY,
    body_limits: Sequence[tuple[str, int | None]] = (),
) -> None:
    """Puts the guards before `app`. `body_limits`: patterns of paths with limits of their own (None: no limit)."""
    # What is added last stands outermost.
    app.add_middleware(Head)
    app.add_middleware(BodyLimit, limit=max_body, by_path=body_limits)
    if cors_origins:
        if "*" in cors_origins:
            raise ValueError("CORS origins must be listed one by one: '*' does not go with cookies")
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.rstrip("/") for origin in cors_origins],
            allow_credentials=True,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_ANSWER_HEADERS,
            max_age=600,
        )
    app.add_middleware(HostGuard, allowed=allowed_hosts)
    app.add_middleware(Edge)


def add_header(scope: Scope, name: str, value: str) -> None:
    """Adds a header to the answer of this request, whoever makes it. For ASCII values of our own."""
    scope.setdefault(EXTRA_HEADERS, []).append((name.lower().encode(), value.encode()))


class Edge:
    """Gives each request an id (the client's own if it is sane), answers it, and sets the security headers.

    The last stop of an exception, too: it becomes a 500 that bears the id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._count = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = _header(scope, b"x-request-id")
        known = given if given is not None and REQUEST_ID.fullmatch(given) else b"%s%08x" % (PROCESS, next(self._count))
        extra: list[tuple[bytes, bytes]] = [(b"x-request-id", known)]
        scope[EXTRA_HEADERS] = extra
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *_missing(message["headers"]), *extra]
            await send(message)

        token = log.REQUEST_ID.set(known.decode())
        try:
            await self.app(scope, receive, answer)
        except ClientDisconnect:
            return
        except Exception as error:
            if started:
                # The answer is left unfinished: the server then cuts the connection, and says so.
                internal(error, scope)
            else:
                await response_for(error, scope)(scope, receive, answer)
        finally:
            log.REQUEST_ID.reset(token)


def _missing(headers: Iterable[tuple[bytes, bytes]]) -> Sequence[tuple[bytes, bytes]]:
    """The security headers that the answer does not bring itself; a page brings its own policy for content."""
    own = [name for name, value in headers if name in SECURITY_NAMES or value.startswith(b"text/html")]
    if not own:
        return SECURITY_HEADERS
    return [pair for pair in SECURITY_HEADERS if pair[0] not in own and not (pair[0] == CONTENT_POLICY and TYPE in own)]


class HostGuard:
    """Refuses names that are not ours, so that no web page can reach this machine under a name of its own.

    `allowed` has names, addresses and `*.example.org` (any name below it); `*` allows all. Ports do not count.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self.app = app
        self.allows = host_matcher(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and not self.allows(_all(scope, b"host")):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            problem = Problem("host_not_allowed", "This server does not answer under that host name.")
            await ProblemResponse(problem)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def host_matcher(allowed: Iterable[str]) -> Callable[[list[bytes]], bool]:
    """A predicate over the values of the Host header: exactly one, and of an allowed name."""
    exact = {name.lower().rstrip(".") for name in allowed if not name.startswith("*")}
    suffixes = tuple(name[1:].lower().rstrip(".") for name in allowed if name.startswith("*.") and len(name) > 2)
    everything = "*" in set(allowed)
    known: set[bytes] = set()

    def allows(values: list[bytes]) -> bool:
        if len(values) != 1:
            return False
        if values[0] in known:
            return True
        match = HOST.fullmatch(values[0].decode("latin-1").lower())
        if match is None:
            return False
        name = match["name"].rstrip(".")
        if not (everything or name in exact or (suffixes and name.endswith(suffixes))):
            return False
        if len(known) < 100:
            known.add(values[0])
        return True

    return allows


def check_origin(request: Request, trusted: Iterable[str] = ()) -> None:
    """For a request that a cookie authenticates: a change needs an Origin that is ours, or one of `trusted`.

    Problem `origin_not_allowed` (403). Ours is the host that was asked for, which HostGuard has checked before.
    """
    if request.method in SAFE_METHODS:
        return
    origins = _all(request.scope, b"origin")
    origin = origins[0].decode("latin-1") if len(origins) == 1 else ""
    if origin not in trusted and not _same_origin(request.scope, origin):
        raise Problem("origin_not_allowed", "A change by cookie must come from the console's own pages.")


def _same_origin(scope: Scope, origin: str) -> bool:
    """Compares host and port; the scheme only where this process speaks https itself: a proxy may end it before us."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return False
    if scope.get("scheme") == "https" and parts.scheme != "https":
        return False
    host = (_header(scope, b"host") or b"").decode("latin-1").lower()
    default = f":{443 if parts.scheme == 'https' else 80}"
    asked = parts.netloc.lower().removesuffix(default) if port else parts.netloc.lower()
    return bool(host) and asked == host.removesuffix(default)


class Head:
    """Answers HEAD as GET, without the body. A stream ends with its headers: it is told that the client has gone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        answered = asyncio.Event()
        asked: Scope = {**scope, "method": "GET"}

        async def headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["route"] = asked.get("route")  # for who counts requests by their routes
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                answered.set()

        async def until_answered() -> Message:
            if not answered.is_set():
                message = await receive()
                if message["type"] != "http.disconnect":
                    return message
            return {"type": "http.disconnect"}

        await self.app(asked, until_answered, headers)


class BodyLimit:
    """Bounds every body, also of routes that read theirs in their own way: 413 by length, or once it is exceeded."""

    def __init__(self, app: ASGIApp, limit: int, by_path: Sequence[tuple[str, int | None]] = ()) -> None:
        self.app = app
        self.limit = limit
        self.by_path = [(re.compile(pattern), bound) for pattern, bound in by_path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._limit(scope) if scope["type"] == "http" else None
        if limit is None:
            await self.app(scope, receive, send)
            return
        length = _header(scope, b"content-length")
        if length is not None and (not length.isdigit() or len(length) > 18 or int(length) > limit):
            await ProblemResponse(_too_large(limit))(scope, receive, send)
            return
        if length is not None or _header(scope, b"transfer-encoding") is None:
            # The server itself holds the body to its declared length, and there is none without a header.
            await self.app(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                # FastAPI lets this exception pass while it reads a body; the handlers make it a problem.
                raise HTTPException(413)
            return message

        await self.app(scope, counted, send)

    def _limit(self, scope: Scope) -> int | None:
        if self.by_path:
            path = scope["path"]
            for pattern, bound in self.by_path:
                if pattern.match(path):
                    return bound
        return self.limit


def _too_large(limit: int) -> Problem:
    return Problem("body_too_large", f"The body may have at most {limit} bytes.")


def _all(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None

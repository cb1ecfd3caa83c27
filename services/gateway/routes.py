"""The gateway as an ASGI application: `/endpoints/{endpoint_id}/v1/…`, OpenAI's API in front of an endpoint's workers.

Plain ASGI rather than a framework's handlers: a token costs one call of `send`, and the client's leaving is seen at
once. Every answer to a failure is OpenAI's error object. `call` reads the request, `access` says who may, `running`
watches over it while `exchange` talks with a worker that `balance` has chosen.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from uuid import UUID

from prometheus_client import CollectorRegistry
from starlette.routing import Route as HttpRoute
from starlette.types import Receive, Scope, Send

from services.gateway import call
from services.gateway.access import Access, CachedAccess, Caller, Credentials
from services.gateway.balance import Balancer
from services.gateway.exchange import Exchange, Reply
from services.gateway.limits import Limits
from services.gateway.metrics import Metrics
from services.gateway.running import KeyWatch, RunningRequests
from services.gateway.table import Route, RouteTable
from services.gateway.upstream import Upstream
from services.gateway.usage import CLIENT_CLOSED, Usage, UsageHook
from shared import log
from shared.errors import Problem
from shared.http.ratelimit import RateLimiter
from shared.telemetry.http import NamedRoute

PATH = "/endpoints/{endpoint_id}/v1/{path:path}"
_OPERATIONS = {"chat/completions": "chat.completions", "completions": "completions", "embeddings": "embeddings"}

logger = log.get_logger(__name__)


def router(gateway: "Gateway") -> HttpRoute:
    """The route to add to an application: `app.router.routes.append(router(gateway))`, before any that would catch it."""
    return NamedRoute(PATH, gateway, name="gateway", include_in_schema=False)


class _Request:
    """One client's request, and the reply to it."""

    __slots__ = ("headers", "id", "method", "path_params", "receive", "reply")

    def __init__(self, scope: Scope, receive: Receive, send: Send, usage: Usage, clock: Callable[[], float]) -> None:
        self.method: str = scope["method"]
        self.path_params: dict[str, str] = scope["path_params"]
        self.headers = call.Headers(scope)
        self.receive = receive
        self.id, untold = call.request_id(self.headers)
        self.reply = Reply(send, [(b"x-request-id", self.id.encode())] if untold else [], usage, clock)


Refresh = Callable[[], Awaitable[None]]


class Gateway:
    """Serves the requests that `router` brings. Make it inside the event loop, and `await aclose()` at the end.

    `refresh` brings the table up to date. It is awaited before anybody is told that an endpoint is not served: what the
    app has just said to be running may not be in the table yet.
    """

    def __init__(
        self,
        table: RouteTable,
        access: Access,
        limits: Limits | None = None,
        *,
        refresh: Refresh | None = None,
        metrics: Metrics | None = None,
        on_usage: UsageHook | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._limits = limits or Limits()
        self._access = CachedAccess(access, self._limits, clock)
        self._clock = clock
        self._refresh = refresh
        self._balancer = Balancer(table, self._limits, clock)
        self._upstream = Upstream(self._limits)
        self._metrics = metrics or Metrics(CollectorRegistry())
        self._on_usage = on_usage
        self._streams: Counter[str] = Counter()
        quota, seconds = self._limits.rate_quota, self._limits.rate_seconds
        self._rate = RateLimiter(quota, seconds, name="inference", clock=clock) if quota else None
        self._running = RunningRequests()
        table.subscribe(self._metrics.route_changed)

    async def aclose(self) -> None:
        """Ends what runs, each stream with an error event, and closes the connections to the workers."""
        await self._running.stop_all(Problem("unavailable", "The service is shutting down."))
        await self._upstream.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        usage = Usage(operation="other", started=self._clock())
        request = _Request(scope, receive, send, usage, self._clock)
        try:
            await self._serve(request, usage)
        except Problem as problem:
            await request.reply.problem(problem)
        except call.ClientGone:
            usage.error = "client_closed"
            if not request.reply.begun:
                usage.status = CLIENT_CLOSED
        except Exception as error:  # the edge: the fault is logged, and the client hears that it is ours
            logger.error("a request failed through a fault of the gateway", request_id=request.id, exc_info=error)
            await request.reply.problem(Problem("internal", "Something went wrong here; it has been logged."))
        finally:
            self._record(usage)

    async def _serve(self, request: _Request, usage: Usage) -> None:
        endpoint_id, path = call.endpoint_id(request.path_params["endpoint_id"]), request.path_params["path"]
        asking = call.credentials(request.headers, request.method)
        caller = await self._access.authorize(asking, endpoint_id)
        usage.endpoint_id, usage.caller = endpoint_id, caller
        if self._rate is not None:
            request.reply.add_headers(self._rate.take(caller.id))
        await self._look_again(endpoint_id)
        self._metrics.began(endpoint_id)
        if path in _OPERATIONS:
            usage.operation = _OPERATIONS[path]
            _expect(request, "POST")
            await self._infer(request, asking, caller, usage)
        elif path == "models" or path.startswith("models/"):
            usage.operation = "models"
            _expect(request, "GET")
            await self._models(request.reply, endpoint_id, path.removeprefix("models").removeprefix("/"))
        else:
            raise Problem("not_found", "There is no such path.")

    async def _look_again(self, endpoint_id: UUID) -> None:
        route = self._table.get(endpoint_id)
        if self._refresh is None or (route is not None and route.workers):
            return
        try:
            async with asyncio.timeout(self._limits.access_seconds):
                await self._refresh()
        except Exception as error:  # the app is away: the table that is there counts
            logger.warning("the routes could not be looked at again", error=type(error).__name__)

    async def _models(self, reply: Reply, endpoint_id: UUID, name: str) -> None:
        route = self._table.get(endpoint_id)
        if name:
            if route is None or route.name_for_worker(name) is None:
                raise call.unknown_model(name)
            answer: dict[str, Any] = _model(route, name if name in route.adapters else route.served_name)
        else:
            shown = [] if route is None else [_model(route, one) for one in route.models]
            answer = {"object": "list", "data": shown}
        await reply.json(200, json.dumps(answer, separators=(",", ":")).encode())

    async def _infer(self, request: _Request, asking: Credentials, caller: Caller, usage: Usage) -> None:
        endpoint_id = usage.endpoint_id
        assert endpoint_id is not None
        payload = await call.read_object(request.headers, request.receive, self._limits)
        if usage.operation == "chat.completions":
            _check_messages(payload)
        streamed = call.wants_stream(payload)
        route = self._table.get(endpoint_id)
        if route is None:
            raise Problem("endpoint_unavailable", "The endpoint is not being served yet.", headers={"Retry-After": "5"})
        exchange = Exchange(
            request.reply,
            self._balancer,
            self._upstream,
            self._limits,
            endpoint_id=endpoint_id,
            path=f"/v1/{request.path_params['path']}",
            body=call.for_worker(payload, route),
            headers={"x-request-id": request.id, **call.trace_headers(request.headers)},
            streamed=streamed,
        )
        watch = KeyWatch(self._access, asking, caller, endpoint_id, self._limits, self._clock)
        with self._stream_of(caller) if streamed else nullcontext():
            await self._running.run(exchange.run(), request.receive, watch, request.reply)

    @contextmanager
    def _stream_of(self, caller: Caller) -> Iterator[None]:
        """Counts a stream of the key; Problem `too_many_streams` when it has as many as it may."""
        if self._streams[caller.id] >= self._limits.streams_per_key:
            detail = f"A key may have {self._limits.streams_per_key} streams at a time."
            raise Problem("too_many_streams", detail, headers={"Retry-After": "1"})
        self._streams[caller.id] += 1
        try:
            yield
        finally:
            self._streams[caller.id] -= 1
            if not self._streams[caller.id]:
                del self._streams[caller.id]

    def _record(self, usage: Usage) -> None:
        usage.ended = self._clock()
        self._metrics.ended(usage)
        if self._on_usage is not None:
            self._on_usage(usage)


def _expect(request: _Request, method: str) -> None:
    if request.method != method:
        detail = f"This path takes {method} only."
        raise Problem("method_not_allowed", detail, headers={"Allow": method})


def _check_messages(payload: dict[str, Any]) -> None:
    """As OpenAI: there is a list of messages, with one at least. Engines make something up for none."""
    if "messages" not in payload:
        raise Problem("missing_required_parameter", "A chat needs `messages`.", param="messages")
    messages = payload["messages"]
    if not (isinstance(messages, list) and messages):
        raise Problem("empty_array", "`messages` must be a list with at least one message.", param="messages")


def _model(route: Route, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": route.created, "owned_by": str(route.project_id)}

"""The workflow server's HTTP interface: one plain ASGI app, that hands each request to the method which answers it.

Flows are run by `runs`; what an answer says is made here, in `describe`, `page` and `openapi`. A stream is `streams`'.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic_core import to_json

from stepway.runner.api import describe, envelopes, openapi, page
from stepway.runner.api.errors import Gone, Refused, refusal
from stepway.runner.api.guard import Guard
from stepway.runner.api.request import JSON, NAMES, STARTED, Answer, Receive, Request, Scope, Send, is_name
from stepway.runner.api.streams import Streams, wish
from stepway.runner.api.waiting import Waiting
from stepway.runner.config import Config
from stepway.runner.live import Served
from stepway.runner.runs import InvalidContext, Runs, UnknownWorkflow
from stepway.runner.store import STATUSES, Handler

log = logging.getLogger(__name__)

Authorise = Callable[[Request], Awaitable[None]]
"""Lets a request pass, or raises Refused (401, 403). `Request.parts` says what is asked."""

_LISTED = 10_000
_PAGE = 1_000
_CODES = {"running": 202, "completed": 200, "failed": 500, "cancelled": 500}
_PLAIN_STOP = "workflows.events.StopEvent"


class Api:
    """`ready` is awaited before a request is answered, and may raise Refused (503) while there is no server to answer."""

    def __init__(
        self, runs: Runs, config: Config, ready: Callable[[], Awaitable[None]], authorise: Authorise | None = None
    ) -> None:
        self._runs = runs
        self._config = config
        self._ready = ready
        self._authorise = authorise
        self._guard = Guard(config.allowed_origins, keys=authorise is not None, public_url=config.public_url)
        self._described: dict[tuple[str, str], bytes] = {}
        self.streams = Streams(config)
        self.waiting = Waiting(runs)
        self._routes: dict[tuple[str | None, ...], dict[str, Callable[[Request], Awaitable[Answer | None]]]] = {
            ("",): {"GET": self._page},
            ("openapi.json",): {"GET": self._openapi},
            ("health",): {"GET": self._health},
            ("workflows",): {"GET": self._workflows},
            ("workflows", None, "run"): {"POST": self._run},
            ("workflows", None, "run-nowait"): {"POST": self._run_nowait},
            ("workflows", None, "schema"): {"GET": self._schema},
            ("workflows", None, "events"): {"GET": self._event_schemas},
            ("workflows", None, "representation"): {"GET": self._representation},
            ("results", None): {"GET": self._result},
            ("events", None): {"GET": self._stream, "POST": self._send},
            ("handlers",): {"GET": self._handlers},
            ("handlers", None): {"GET": self._handler},
            ("handlers", None, "cancel"): {"POST": self._cancel},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send, _parts(scope))
        try:
            answer = await self._answer(request)
        except Gone:
            return
        except Exception as error:
            refused = refusal(error)
            if refused is None:
                log.exception("%s %s failed", request.method, scope["path"])
                refused = Refused(500, "Internal server error")
            answer = Answer(_json({"detail": refused.detail}), refused.status, (*JSON, *refused.headers))
        if answer is not None:
            await request.answer(answer)

    async def _answer(self, request: Request) -> Answer | None:
        self._guard.check(request)
        if (preflight := self._guard.preflight(request)) is not None:
            return preflight
        answer = self._find(request)
        if self._authorise is not None:
            await self._authorise(request)
        if request.parts != ["health"]:
            await self._ready()
        return await answer(request)

    def _find(self, request: Request) -> Callable[[Request], Awaitable[Answer | None]]:
        parts, method = request.parts, request.method
        key = (parts[0], None, *parts[2:]) if len(parts) > 1 and parts[1] else tuple(parts)
        methods = self._routes.get(key)
        if methods is None:
            raise Refused(404, "Not Found")
        found = methods.get("GET" if method == "HEAD" else method)
        if found is None:
            allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
            raise Refused(405, "Method Not Allowed", ((b"allow", allowed.encode()),))
        return found

    # what there is

    async def _health(self, request: Request) -> Answer:
        try:
            await self._ready()
            problem = None if self._runs.started else "not started"
            problem = problem or await self._runs.store.healthy()
        except Refused as error:
            problem = error.detail
        if problem is not None:
            return Answer(_json({"status": "unhealthy", "detail": problem}), 503)
        return Answer(b'{"status":"healthy"}')

    async def _workflows(self, request: Request) -> Answer:
        return Answer(_json({"workflows": list(self._runs.served)}))

    async def _schema(self, request: Request) -> Answer:
        return self._description(request, "schema", lambda served: describe.schema(served.workflow))

    async def _event_schemas(self, request: Request) -> Answer:
        return self._description(request, "events", lambda served: describe.event_schemas(served.events))

    async def _representation(self, request: Request) -> Answer:
        return self._description(request, "representation", lambda served: describe.graph(served.workflow))

    async def _page(self, request: Request) -> Answer:
        root = request.scope.get("root_path", "")
        if root and request.scope["path"] == root:  # links are relative to the folder
            return Answer(b"", 307, ((b"location", f"{root}/".encode("ascii", "backslashreplace")),))
        key = "/".join(self._runs.served), "page"
        if key not in self._described:
            self._described[key] = page.page(self._runs.served.values())
        return Answer(self._described[key], 200, page.HEADERS)

    async def _openapi(self, request: Request) -> Answer:
        made = openapi.document(self._runs.served.values(), request.scope.get("root_path", ""))
        return Answer(_json(made))

    def _description(self, request: Request, kind: str, make: Callable[[Served], dict[str, Any]]) -> Answer:
        """Made once: a flow's classes do not change while it is served."""
        served = self._served(request)
        key = served.name, kind
        if key not in self._described:
            self._described[key] = _json(make(served))
        return Answer(self._described[key])

    # running

    async def _run(self, request: Request) -> Answer | None:
        handler = await self.waiting.finished(await self._start(request, told=False))
        return Answer(handler_json(handler), 200 if handler.status == "completed" else 500)

    async def _run_nowait(self, request: Request) -> Answer:
        return Answer(handler_json(await self._start(request)))

    async def _start(self, request: Request, *, told: bool = True) -> Handler:
        served = self._served(request)
        body = await request.json_object(self._config.max_body, "Invalid JSON body")
        context = body.get("context") or None
        if context is not None:
            _check_context(served, context)
        handler_id = body.get("handler_id") or None
        if handler_id is not None and not is_name(handler_id):
            raise Refused(400, f"handler_id: {NAMES}")
        start_event = self._start_event(served, body, context)
        try:
            handler = await self._runs.start(
                served.name, start_event=start_event, context=context, handler_id=handler_id, told=told
            )
        except InvalidContext:
            raise
        except ValueError:  # of the serializer, with the value in its words
            raise Refused(400, f"{type(start_event).__name__} cannot be stored as JSON") from None
        if (started := request.scope.get(STARTED)) is not None:
            started(handler.run_id)
        return handler

    def _start_event(self, served: Served, body: dict[str, Any], context: Any) -> Any:
        given = body.get("start_event", body.get("kwargs", {}))
        expected = served.workflow.start_event_class
        try:
            event = envelopes.read({} if given is None else given, served.registry, expected)
        except envelopes.InvalidEvent as error:
            if given is None and context is not None and context.get("is_running"):  # it goes on in the middle
                return None
            raise Refused(400, f"Validation error for 'start_event': {error}") from None
        if not isinstance(event, expected):
            raise Refused(400, f"Start event must be an instance of {expected.__name__}, not {type(event).__name__}")
        return event

    # handlers

    async def _handler(self, request: Request) -> Answer:
        handler = await self._known(request)
        return Answer(handler_json(handler), _CODES[handler.status])

    async def _result(self, request: Request) -> Answer:
        handler = await self._known(request)
        result: Any = handler.result
        if result is not None:
            value = result["value"]
            result = value.get("result") if result["qualified_name"] == _PLAIN_STOP else value
        return Answer(_json(_fields(handler) | {"result": result}), _CODES[handler.status])

    async def _handlers(self, request: Request) -> Answer:
        limit = request.last("limit", "").strip()
        if limit and not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= _PAGE):
            raise Refused(400, f"limit: a number from 1 to {_PAGE}")
        statuses, workflows = _filter(request, "status"), _filter(request, "workflow_name")
        if statuses is not None:
            statuses &= set(STATUSES)
        found: list[Handler] = []
        following = None
        if statuses != set() and workflows != set():
            try:
                found, following = await self._runs.page(
                    statuses,
                    workflows,
                    int(limit) if limit else _LISTED,
                    request.last("cursor", "").strip()[:200] or None,
                )
            except ValueError:
                raise Refused(400, "cursor: it is not the `next_cursor` of an answer") from None
        made: dict[str, Any] = {"handlers": [_fields(handler) for handler in found]}
        if limit or following is not None:
            made["next_cursor"] = following
        return Answer(_json(made))

    async def _cancel(self, request: Request) -> Answer:
        handler = await self._known(request)
        done = await self._runs.cancel(handler.handler_id, purge=request.flag("purge", False))
        return Answer(_json({"status": done}))

    # events

    async def _stream(self, request: Request) -> None:
        asked = wish(request)
        await self.streams.serve(request, self._runs.store, await self._known(request), asked)

    async def _send(self, request: Request) -> Answer:
        body = await request.json_object(self._config.max_body, "Error processing request")
        given, step = body.get("event"), body.get("step") or None
        if not given:
            raise Refused(400, "Event data is required")
        handler = await self._known(request)
        if handler.over:
            raise Refused(409, "Workflow already completed")
        served = self._runs.served.get(handler.workflow_name)
        if served is None:
            raise Refused(400, f"Workflow {handler.workflow_name!r} is not served here")
        if step is not None and not isinstance(step, str):
            raise Refused(400, "step is the name of a step")
        await self._runs.send(handler.handler_id, envelopes.read(given, served.registry), step)
        return Answer(b'{"status":"sent"}')

    def _served(self, request: Request) -> Served:
        served = self._runs.served.get(request.name)
        if served is None:
            raise UnknownWorkflow(request.name)
        return served

    async def _known(self, request: Request) -> Handler:
        if not is_name(request.name):  # nothing has such a name, and a store may not even ask for it
            raise Refused(404, "Handler not found")
        return await self._runs.get(request.name)


def handler_json(handler: Handler) -> bytes:
    return _json(_fields(handler))


def _fields(handler: Handler) -> dict[str, Any]:
    return {
        "handler_id": handler.handler_id,
        "workflow_name": handler.workflow_name,
        "run_id": handler.run_id,
        "error": handler.error,
        "result": handler.result,
        "status": handler.status,
        "started_at": handler.started_at.isoformat(),
        "updated_at": handler.updated_at.isoformat(),
        "completed_at": None if handler.completed_at is None else handler.completed_at.isoformat(),
    }


def _json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="null")


def _parts(scope: Scope) -> list[str]:
    path: str = scope["path"]
    root = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        path = path[len(root) :]
    return path.removeprefix("/").split("/")


def _filter(request: Request, name: str) -> set[str] | None:
    """The values of a repeatable field; None when none is given, blanks do not count."""
    given = [value.strip() for value in request.query.get(name, ()) if value.strip()]
    return {value for value in given if is_name(value)} if given else None


def _check_context(served: Served, context: Any) -> None:
    """What a client sends as a context names classes; only a serializer with a list of them reads it without importing."""
    if not isinstance(context, dict):
        raise Refused(400, "context: it is not a JSON object")
    if not describe.reads_only_known(served.serializer):
        raise Refused(400, "context: this workflow's serializer makes whatever it is told to, so none is taken")

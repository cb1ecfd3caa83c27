"""One HTTP request as the server hands it over (ASGI), and the answer to it; `routes` has no need of more."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs

from stepway.runner.api import strict_json
from stepway.runner.api.errors import CLOSE, Gone, Headers, Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

NAMES = "1 to 200 printable characters without / \\ ? # %, or blanks at its ends"
JSON: Headers = ((b"content-type", b"application/json"),)
STARTED = "stepway.started"  # key of the scope: what to call with the id of a run that the request has started
BODY_TIMEOUT = 60.0  # seconds that a client may take between two parts of a body
_FIELDS = 1000
_LONGEST_NAME = 200


@dataclass(slots=True)
class Answer:
    """A whole answer; `headers` are beside the length."""

    body: bytes
    status: int = 200
    headers: Headers = JSON


@dataclass
class Request:
    """`parts`: the path below where the app is mounted, split at slashes. `added`: headers of whatever is answered."""

    scope: Scope
    receive: Receive
    send: Send
    parts: list[str]
    added: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def name(self) -> str:
        """The parameter of the path: of a workflow, or of a handler."""
        return self.parts[1]

    @cached_property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.scope["headers"])

    @cached_property
    def query(self) -> dict[str, list[str]]:
        text = self.scope.get("query_string", b"").decode("latin-1")
        if not text:
            return {}
        try:
            return parse_qs(text, keep_blank_values=True, max_num_fields=_FIELDS)
        except ValueError:
            raise Refused(400, f"The query has over {_FIELDS} fields") from None

    def last(self, name: str, default: str) -> str:
        """The value of a query's field; the last one of several."""
        return self.query.get(name, [default])[-1]

    def flag(self, name: str, default: bool) -> bool:
        return self.last(name, str(default)).lower() == "true"

    async def body(self, limit: int) -> bytes:
        """Raises Refused (413, 408), Gone."""
        length = self.headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > limit:
            raise _too_large(limit)
        message = await self.receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            return body
        return await self._parts(message, limit)

    async def _parts(self, message: MutableMapping[str, Any], limit: int) -> bytes:
        whole = bytearray()
        while True:
            if message["type"] == "http.disconnect":
                raise Gone
            whole += message.get("body", b"")
            if len(whole) > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                return bytes(whole)
            try:
                async with asyncio.timeout(BODY_TIMEOUT):
                    message = await self.receive()
            except TimeoutError:
                raise Refused(408, "The rest of the body did not come", CLOSE) from None

    async def json_object(self, limit: int, said: str) -> dict[str, Any]:
        """The body as an object; `said` begins the refusal. Raises Refused (400, 408, 413), Gone."""
        try:
            body = strict_json.loads(await self.body(limit))
        except strict_json.InvalidJson as error:
            raise Refused(400, f"{said}: {error}") from None
        if not isinstance(body, dict):
            raise Refused(400, f"{said}: the body is not a JSON object")
        return body

    async def answer(self, answer: Answer) -> None:
        headers = [*answer.headers, *self.added]
        if answer.status != 204:
            headers.append((b"content-length", b"%d" % len(answer.body)))
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        body = answer.body if self.method != "HEAD" else b""
        await self.send({"type": "http.response.body", "body": body})


def _too_large(limit: int) -> Refused:
    return Refused(413, f"A body may have {limit} bytes", CLOSE)


def is_name(value: object) -> bool:
    """Whether a workflow or a handler may be called so (`NAMES`): such a name stands in a path as it is."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= _LONGEST_NAME
        and value.isprintable()
        and value.strip() == value
        and value not in (".", "..")
        and not any(character in value for character in "/\\?#%")
    )

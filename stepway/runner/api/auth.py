"""Who may call, on a server that asks for keys. `guard` is for one that does not.

A server that is joined to a platform takes the platform's keys: each is shown to the platform once in a while, which says
whose it is. One that is joined to none may have a single key of its own. Keys are remembered by their hash, and appear in no
log, error or repr. GET /health needs none: it says nothing of anybody's.
"""

import asyncio
import hashlib
import hmac
import re
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import httpx

from stepway.runner.api.errors import RETRY_SOON, Refused
from stepway.runner.api.request import STARTED, Request, Send
from stepway.runner.store import StoreUnavailable

FRESH = 30.0  # seconds for which a key is believed without asking
GRACE = 600.0  # seconds for which it is believed while the platform does not answer
REFUSED_FOR = 5.0  # seconds for which a refused key is not asked about again
AWAY = 3.0  # seconds for which a platform that did not answer is not asked
PATIENCE = 3.0  # seconds that it has for an answer
MOST_KNOWN, MOST_REFUSED, MOST_ASKING = 10_000, 1_000, 16

_KEY = re.compile(rb"[!-~]{1,512}")
_BEARER = re.compile(rb"bearer +([!-~]{1,512}) *", re.IGNORECASE)
_SAFE = frozenset({"GET", "HEAD"})
_ASK = ((b"www-authenticate", b"Bearer"),)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key it is, and what they may do in this server's project."""

    user_id: str
    key_id: str | None
    reads: bool
    writes: bool


_NOBODY = Caller("", None, reads=False, writes=False)  # with a key for other things


class StaticKey:
    """Lets pass who shows the one key of a server that no platform looks after. Raises Refused (401)."""

    def __init__(self, key: str) -> None:
        """Raises ValueError for a key that no header could carry."""
        if _KEY.fullmatch(key.encode()) is None:
            raise ValueError("The key of a workflow server is 1 to 512 visible ASCII characters")
        self._digest = _digest(key.encode())

    async def __call__(self, request: Request) -> None:
        if request.parts == ["health"]:
            return
        key = _shown(request)
        if key is None or not hmac.compare_digest(_digest(key), self._digest):
            raise _unauthenticated()


class PlatformKeys:
    """Lets pass who shows a key of the platform whose user reads (GET) or works (POST) in the server's project.

    `project` is known once the server is registered; `started` hears of runs that were started with a key. Raises Refused:
    401 for no valid key, 403 for one that may not, 503 for an unknown one while the platform does not answer.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        project: Callable[[], str | None],
        started: Callable[[str, Caller], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._project = project
        self._started = started
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()  # with when it was asked; oldest first
        self._refused: OrderedDict[bytes, float] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._away_until = 0.0

    async def __call__(self, request: Request) -> None:
        if request.parts == ["health"]:
            return
        key = _shown(request)
        caller = None if key is None else await self._caller(key)
        if caller is None:
            raise _unauthenticated()
        if request.method in _SAFE:
            if not caller.reads:
                raise Refused(403, "This key does not read in the project of this server")
            if key is not None and request.parts[0] == "events":
                request.send = self._while_valid(key, request.send)
            return
        if not caller.writes:
            raise Refused(403, "This key may not run workflows in the project of this server")
        request.scope[STARTED] = lambda run_id: self._started(run_id, caller)

    def _while_valid(self, key: bytes, send: Send) -> Send:
        """Sends a stream as long as its key reads: heartbeats, too, ask whether it still does."""

        async def checked(message: MutableMapping[str, Any]) -> None:
            try:
                caller = await self._caller(key)
            except Refused:
                caller = None
            if caller is None or not caller.reads:
                raise StoreUnavailable("The key of the stream is not valid any more")  # which breaks the stream off
            await send(message)

        return checked

    async def _caller(self, key: bytes) -> Caller | None:
        digest, now = _digest(key), self._clock()
        known = self._known.get(digest)
        if known is not None and now < known[0] + FRESH:
            return known[1]
        if now < self._refused.get(digest, 0.0):
            return None
        if now < self._away_until:
            return self._believed(digest)
        task = self._asking.get(digest)
        if task is None:
            if len(self._asking) >= MOST_ASKING:
                return self._believed(digest)
            task = self._asking[digest] = asyncio.ensure_future(self._ask(key, digest))
            task.add_done_callback(lambda done: self._asked(digest, done))
        return await asyncio.shield(task)  # one caller that leaves must not take the answer from the others

    def _asked(self, digest: bytes, task: "asyncio.Task[Caller | None]") -> None:
        del self._asking[digest]
        if not task.cancelled():
            task.exception()  # seen, also when everybody who asked has left

    def _believed(self, digest: bytes) -> Caller:
        """Who had the key when the platform answered last."""
        known = self._known.get(digest)
        if known is None or self._clock() > known[0] + GRACE:
            raise Refused(503, "Keys cannot be checked now: the platform does not answer", RETRY_SOON)
        return known[1]

    async def _ask(self, key: bytes, digest: bytes) -> Caller | None:
        project, asked_at = self._project(), self._clock()
        if project is None:
            raise Refused(
                503, "Keys cannot be checked yet: this server is not registered with its platform", RETRY_SOON
            )
        try:
            answer = await self._client.get("/me", headers={b"authorization": b"Bearer " + key}, timeout=PATIENCE)
            if answer.status_code == 401:
                self._refuse(digest, asked_at)
                return None
            caller = _NOBODY if answer.status_code == 403 else _caller_of(answer.raise_for_status().json(), project)
        except (httpx.HTTPError, ValueError, LookupError, TypeError):  # it is away, or has a fault
            self._away_until = self._clock() + AWAY
            return self._believed(digest)
        self._known.pop(digest, None)
        self._known[digest] = (asked_at, caller)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return caller

    def _refuse(self, digest: bytes, asked_at: float) -> None:
        self._known.pop(digest, None)
        self._refused[digest] = asked_at + REFUSED_FOR
        if len(self._refused) > MOST_REFUSED:
            self._refused.popitem(last=False)


def _caller_of(me: Any, project: str) -> Caller:
    """What the platform says of a key, as far as this server's project is concerned. Raises LookupError, TypeError."""
    role, key = me["role"], me["key"]
    inside = {one["project_id"]: one["role"] for one in me["memberships"]}.get(project)
    everywhere = role in ("operator", "admin")
    reads = key["project_id"] in (None, project) and (everywhere or inside is not None)
    works = reads and (everywhere or (role == "member" and inside in ("manager", "member")))
    scopes = key["scopes"] or ("read", "write")  # none named: all
    return Caller(str(me["id"]), str(key["id"]), reads and "read" in scopes, works and "write" in scopes)


def _shown(request: Request) -> bytes | None:
    """The key of `Authorization: Bearer` or `X-API-Key`; None for none, and for two that differ."""
    found = set[bytes | None]()
    for name, value in request.scope["headers"]:
        if name == b"authorization":
            match = _BEARER.fullmatch(value)
            found.add(match[1] if match else None)
        elif name == b"x-api-key":
            found.add(value if _KEY.fullmatch(value) else None)
    return found.pop() if len(found) == 1 else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _unauthenticated() -> Refused:
    return Refused(401, "Send a valid key: Authorization: Bearer <key>, or X-API-Key", _ASK)

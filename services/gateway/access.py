"""Who may use an endpoint. The app implements `Access`; `CachedAccess` stands before it in the gateway.

The cache believes a positive answer for a few seconds and never a refusal, so that a new key works at once and a
revoked one stops soon.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from services.gateway.limits import Limits
from shared import log
from shared.errors import Problem

logger = log.get_logger(__name__)

_MAX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request brought to say who it is, header by header; None where a header is absent."""

    authorization: str | None = field(default=None, repr=False)
    cookie: str | None = field(default=None, repr=False)
    origin: str | None = None
    host: str | None = None
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `id` names the key or the session; streams are counted by it."""

    id: str
    user_id: UUID | None = None


class Access(Protocol):
    async def authorize(self, credentials: Credentials, endpoint_id: UUID) -> Caller:
        """Raises Problem: `unauthenticated`, `forbidden`, `origin_not_allowed`, or `not_found` for an endpoint that
        does not exist and, in the same words, for one that the caller may not see."""
        ...


_Question = tuple[Credentials, UUID]


class CachedAccess:
    """Remembers for a while who may use what, and asks once when many ask the same at the same time.

    Raises what `Access` raises, and Problem `unavailable` when that does not answer or fails.
    """

    def __init__(self, access: Access, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._access = access
        self._limits = limits
        self._clock = clock
        self._known: dict[_Question, tuple[Caller, float]] = {}  # oldest first
        self._asking: dict[_Question, asyncio.Task[Caller]] = {}

    async def authorize(self, credentials: Credentials, endpoint_id: UUID) -> Caller:
        question = (credentials, endpoint_id)
        known = self._known.get(question)
        if known is not None and self._clock() < known[1]:
            return known[0]
        return await self._ask(question)

    async def recheck(self, credentials: Credentials, endpoint_id: UUID) -> Caller:
        """Asks anew, whatever is remembered."""
        return await self._ask((credentials, endpoint_id))

    async def _ask(self, question: _Question) -> Caller:
        task = self._asking.get(question)
        if task is None:
            task = self._asking[question] = asyncio.create_task(self._fresh(question))
            task.add_done_callback(lambda done: self._asked(question, done))
        return await asyncio.shield(task)  # one caller that leaves must not take the answer from the others

    async def _fresh(self, question: _Question) -> Caller:
        asked_at = self._clock()  # before the question: an answer is as old as what it was read from
        self._known.pop(question, None)
        try:
            async with asyncio.timeout(self._limits.access_seconds):
                caller = await self._access.authorize(*question)
        except Problem:
            raise
        except Exception as error:  # whatever the database or the network raises: the caller can only try again
            logger.warning("access could not be checked", exc_info=error)
            raise Problem(
                "unavailable", "Keys cannot be checked at the moment.", headers={"Retry-After": "5"}
            ) from None
        if len(self._known) >= _MAX_ENTRIES:
            del self._known[next(iter(self._known))]
        self._known[question] = (caller, asked_at + self._limits.cache_seconds)
        return caller

    def _asked(self, question: _Question, task: asyncio.Task[Caller]) -> None:
        del self._asking[question]
        if not task.cancelled():
            task.exception()  # seen, also when everybody who asked has left

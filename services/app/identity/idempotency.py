"""`Idempotency-Key`: a request that is repeated does its work once, and gets the first answer again.

A route that creates or triggers takes `Once` and hands it its work:

    @router.post("/things")
    async def create(body: ThingIn, request: Request, context: Context, caller: Authenticated, once: Once) -> Response:
        async def work() -> Response:
            async with context.database.transaction() as session:
                return created(await service.create(session, caller, body))
        return await once.run(fingerprint_of(request), work)

The claim is committed before the work begins, and the work commits by itself: such a route does not take `Session`. The
rows are `idempotency_store`'s.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Header, Request
from fastapi.responses import Response
from pydantic_core import to_json
from sqlalchemy.exc import SQLAlchemyError

from services.app.context import Context
from services.app.identity import idempotency_store as store
from services.app.identity.authenticate import Authenticated
from services.app.identity.idempotency_store import Answer, Earlier, Place, purge
from shared import log
from shared.db.engine import Database
from shared.errors import Problem
from shared.http.problems import ProblemResponse

__all__ = ["Once", "OnceGuard", "ShownOnce", "purge"]

KEY = re.compile(r"[!-~]{1,255}")
SIGN_OF_LIFE = 20.0  # seconds, well below the time after which a request counts as crashed
KEPT_HEADERS = ("location", "etag")
NOT_KEPT = 429  # and whatever is 500 or more: these say nothing about the request itself

logger = log.get_logger(__name__)
Work = Callable[[], Awaitable[Response]]


class ShownOnce(Response):
    """A JSON answer whose `members` only its first reader gets to see: in a replay they are null."""

    def __init__(
        self,
        content: Mapping[str, Any],
        members: Collection[str],
        status_code: int = 201,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        kept = {**(headers or {}), "Cache-Control": "no-store"}
        super().__init__(to_json(content), status_code, kept, media_type="application/json")
        self.for_replay = to_json({**content, **dict.fromkeys(members)})


class OnceGuard:
    """Runs a request's work unless an earlier request with the same Idempotency-Key has done so."""

    def __init__(self, database: Database, place: Place | None) -> None:
        self._database = database
        self._place = place

    async def run(self, fingerprint: str, work: Work) -> Response:
        """The answer of `work`, or the one that it gave before.

        Problems: `idempotency_mismatch` for another fingerprint, `idempotency_in_flight` while the first is answered.
        """
        place = self._place
        if place is None:
            return await work()
        claimed = await store.claim(self._database, place, fingerprint)
        if isinstance(claimed, Earlier):
            return _replayed(claimed, fingerprint)
        return await self._first(place, claimed, work)

    async def _first(self, place: Place, token: UUID, work: Work) -> Response:
        alive = asyncio.create_task(self._stay_alive(place, token), name="idempotency-alive")
        try:
            response = await work()
        except Problem as problem:
            response = ProblemResponse(problem)
        except Exception:
            # It becomes a 500 further out: nothing worth keeping has been answered.
            await store.release(self._database, place, token)
            raise
        finally:
            alive.cancel()
        await self._keep(place, token, response)
        return response

    async def _keep(self, place: Place, token: UUID, response: Response) -> None:
        """The work is done and committed: a fault here must not make its answer a 500."""
        status = response.status_code
        body = getattr(response, "for_replay", response.body)
        headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
        media_type = response.headers.get("content-type")
        try:
            if status >= 500 or status == NOT_KEPT:
                await store.release(self._database, place, token)
            else:
                await store.answer(self._database, place, token, Answer(status, bytes(body), media_type, headers))
        except (SQLAlchemyError, OSError) as error:
            logger.warning("answer_not_kept", error=type(error).__name__)

    async def _stay_alive(self, place: Place, token: UUID) -> None:
        while True:
            await asyncio.sleep(SIGN_OF_LIFE)
            with suppress(SQLAlchemyError, OSError):  # the next sign comes soon enough
                await store.touch(self._database, place, token)


def _replayed(earlier: Earlier, fingerprint: str) -> Response:
    if earlier.fingerprint != fingerprint:
        raise Problem("idempotency_mismatch", "This Idempotency-Key came with another request before.")
    answer = earlier.answer
    if answer is None:
        raise Problem(
            "idempotency_in_flight", "The first request is still being answered.", headers={"Retry-After": "1"}
        )
    headers = {**answer.headers, "Idempotency-Replayed": "true", "Cache-Control": "no-store"}
    if answer.media_type is not None:
        headers["Content-Type"] = answer.media_type
    return Response(answer.body, answer.status, headers)


async def _once(
    request: Request,
    context: Context,
    caller: Authenticated,
    idempotency_key: Annotated[
        str | None, Header(description="A text of your own: who repeats it within 24 h gets the first answer again.")
    ] = None,
) -> OnceGuard:
    keys = request.headers.getlist("idempotency-key")
    if idempotency_key is None:
        return OnceGuard(context.database, None)
    if len(keys) > 1 or KEY.fullmatch(keys[0]) is None:
        raise Problem("invalid_request", "Idempotency-Key must be one text of 1 to 255 visible ASCII characters.")
    return OnceGuard(context.database, Place(caller.user_id, keys[0], request.method, request.url.path))


Once = Annotated[OnceGuard, Depends(_once)]

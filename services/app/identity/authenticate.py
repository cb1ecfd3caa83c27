"""Finds the caller of a request: by its key, or by the cookie of a login. Answers are remembered for a few seconds.

Every route depends on `Authenticated`; the few that do not say why. A change by cookie also needs a matching Origin.
"""

import hashlib
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from sqlalchemy import text

from services.app.context import AppContext
from services.app.identity.caller import SCOPES, Caller
from shared.errors import Problem
from shared.http.bodies import before_body
from shared.http.guards import add_header, check_origin
from shared.http.ratelimit import RateLimiter
from shared.security import apikeys

COOKIE = "stepway_session"
CALLER = "stepway.caller"  # key of the scope
REMEMBER_SECONDS = 5.0
REMEMBER_CALLERS = 2048
LOGINS, LOGIN_WINDOW = 30, 60.0  # tries from one address, in so many seconds
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_BY_KEY = text("""
    SELECT u.id, u.name, u.role, k.id AS key_id, k.hash, k.scopes, k.project_id,
           coalesce((SELECT jsonb_object_agg(m.project_id, m.role) FROM platform.member m WHERE m.user_id = u.id), '{}')
               AS projects
      FROM platform.api_key k JOIN platform."user" u ON u.id = k.user_id
     WHERE k.prefix = :prefix AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
       AND u.disabled_at IS NULL""")

_BY_LOGIN = text("""
    SELECT u.id, u.name, u.role, k.id AS key_id, l.hash, k.scopes, k.project_id,
           coalesce((SELECT jsonb_object_agg(m.project_id, m.role) FROM platform.member m WHERE m.user_id = u.id), '{}')
               AS projects
      FROM platform.login l JOIN platform.api_key k ON k.id = l.key_id JOIN platform."user" u ON u.id = k.user_id
     WHERE l.hash = :hash AND l.expires_at > now() AND k.revoked_at IS NULL
       AND (k.expires_at IS NULL OR k.expires_at > now()) AND u.disabled_at IS NULL""")

_USED = text("""UPDATE platform.api_key SET last_used_at = now()
                 WHERE id = :id AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')""")


class Authenticator:
    """Callers by the hash of what they showed; only what was good is remembered, and only for seconds."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._known: OrderedDict[str, tuple[float, Caller]] = OrderedDict()
        self.limiter = RateLimiter(context.settings.rate_quota, context.settings.rate_window, name="key")
        self.login_limiter = RateLimiter(LOGINS, LOGIN_WINDOW, name="login")

    def forget(self) -> None:
        """Look everyone up again: a key, a role or a membership has changed."""
        self._known.clear()

    async def by_key(self, key: str) -> Caller | None:
        return await self._lookup("k" + apikeys.hash_key(key), lambda: self._find_key(key))

    async def by_cookie(self, value: str) -> Caller | None:
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        return await self._lookup("c" + digest, lambda: self._find(_BY_LOGIN, {"hash": digest}, None))

    async def _lookup(self, name: str, find) -> Caller | None:  # type: ignore[no-untyped-def]
        known = self._known.get(name)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        caller: Caller | None = await find()
        self._known.pop(name, None)
        if caller is not None:
            self._known[name] = (time.monotonic() + REMEMBER_SECONDS, caller)
            while len(self._known) > REMEMBER_CALLERS:
                self._known.popitem(last=False)
        return caller

    async def _find_key(self, key: str) -> Caller | None:
        prefix = apikeys.prefix_of(key)
        return None if prefix is None else await self._find(_BY_KEY, {"prefix": prefix}, key)

    async def _find(self, statement, values: dict[str, str], key: str | None) -> Caller | None:  # type: ignore[no-untyped-def]
        async with self._context.database.statement() as connection:
            row = (await connection.execute(statement, values)).one_or_none()
            if row is None or (key is not None and not apikeys.verify(key, row.hash)):
                return None
            await connection.execute(_USED, {"id": row.key_id})
        projects = {UUID(project): role for project, role in row.projects.items()}
        scopes = frozenset(row.scopes) or frozenset(SCOPES)
        return Caller(row.id, row.name, row.role, row.key_id, scopes, projects, row.project_id)


@before_body
async def authenticate(request: Request) -> Caller:
    """The caller, or a problem: `unauthenticated` 401, `forbidden` 403 for a key without the scope, 429."""
    known: Caller | None = request.scope.get(CALLER)
    if known is not None:
        return known
    authenticator: Authenticator = request.app.state.authenticator
    context: AppContext = request.app.state.context
    caller = await find_caller(request, authenticator, context.settings.cors_origins)
    if caller is None:
        raise Problem("unauthenticated", "Send a valid key: Authorization: Bearer <key>.")
    for name, value in authenticator.limiter.take(str(caller.key_id)).items():
        add_header(request.scope, name, value)
    caller.require_scope("read" if request.method in SAFE_METHODS else "write")
    caller = request.scope[CALLER] = replace(caller, address=request.client.host if request.client else None)
    return caller


async def find_caller(request: Request, authenticator: Authenticator, origins: list[str]) -> Caller | None:
    """Who shows a valid key or login; None for nobody. A change by cookie from elsewhere is `origin_not_allowed`."""
    header = request.headers.get("authorization")
    if header is not None:
        key = apikeys.bearer_token(header)
        return None if key is None else await authenticator.by_key(key)
    cookie = request.cookies.get(COOKIE)
    if cookie is None:
        return None
    if request.method not in SAFE_METHODS:
        check_origin(request, origins)
    return await authenticator.by_cookie(cookie)


Authenticated = Annotated[Caller, Depends(authenticate)]


async def still_valid(authenticator: Authenticator, request: Request, caller: Caller) -> bool:
    """Whether what opened a stream would still do so: same key, role and memberships."""
    header, cookie = request.headers.get("authorization"), request.cookies.get(COOKIE)
    now = None
    if header is not None and (key := apikeys.bearer_token(header)) is not None:
        now = await authenticator.by_key(key)
    elif cookie is not None:
        now = await authenticator.by_cookie(cookie)
    return now is not None and (now.role, now.projects, now.scopes) == (caller.role, caller.projects, caller.scopes)

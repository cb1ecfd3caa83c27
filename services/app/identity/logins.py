"""Logins: a browser shows its key once and gets a cookie for twelve hours, which ends with the key.

These routes take no `Authenticated`: who logs in has no cookie yet, and who logs out may hold one that is stale.
"""

import hashlib
import secrets
from datetime import timedelta
from uuid import uuid4

from fastapi import Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.audit.service import Actor
from services.app.identity import repository
from services.app.identity.authenticate import COOKIE, Authenticator
from services.app.identity.caller import Caller
from services.app.identity.tables import LoginRow
from shared.clock import now
from shared.errors import Problem
from shared.http.guards import check_origin

LASTS = timedelta(hours=12)


async def caller_of(request: Request, key: str) -> Caller:
    """Whose key it is. Problem `unauthenticated`, `rate_limited` per address, `origin_not_allowed` for a foreign page."""
    authenticator: Authenticator = request.app.state.authenticator
    if "origin" in request.headers:  # a browser asks: a foreign page must not log anybody in
        check_origin(request, request.app.state.context.settings.cors_origins)
    address = request.client.host if request.client else None
    authenticator.login_limiter.take(f"{address}")
    caller = await authenticator.by_key(key)
    if caller is None:
        raise Problem("unauthenticated", "This key is not valid: mistyped, revoked or expired.")
    return caller


async def begin(session: AsyncSession, caller: Caller) -> str:
    """Make a login; the cookie's value, of which only the hash is kept."""
    await repository.purge_logins(session)
    value = secrets.token_urlsafe(32)
    login = LoginRow(id=uuid4(), hash=_digest(value), key_id=caller.key_id, expires_at=now() + LASTS, created_at=now())
    session.add(login)
    await session.flush()
    await audit.record(session, caller, "login.begin", "login", login.id)
    return value


async def end(session: AsyncSession, value: str, address: str | None) -> None:
    """End the login of this cookie, if there is one. `address` is where the request came from."""
    key_id = await repository.end_login(session, _digest(value))
    key = await repository.key(session, key_id) if key_id else None
    if key is not None:
        await audit.record(session, Actor(key.user_id, key.id, address), "login.end", "login", None)


def set_cookie(request: Request, response: Response, value: str) -> None:
    response.set_cookie(
        COOKIE, value, max_age=int(LASTS.total_seconds()), httponly=True, samesite="strict", secure=_is_https(request)
    )


def clear_cookie(request: Request, response: Response) -> None:
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=_is_https(request))


def _is_https(request: Request) -> bool:
    """Also behind a proxy that ends TLS: then the page's own Origin says so."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()

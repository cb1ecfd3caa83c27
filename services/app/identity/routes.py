"""The routes of users, API keys and logins."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from services.app.context import Context, Session
from services.app.identity import keys, logins, service
from services.app.identity.authenticate import COOKIE, Authenticated
from services.app.identity.changes import PeopleSession, people_change
from services.app.identity.idempotency import Once, ShownOnce
from services.app.identity.schemas import KeyIn, LoginIn, Role, UserChange, UserIn, key_view, user_view
from services.app.resources import JSON, Expected, answer, created
from shared.http.bodies import StrictRoute, fingerprint_of
from shared.http.guards import check_origin
from shared.http.pages import PageParams

router = APIRouter(tags=["identity"], route_class=StrictRoute)


@router.get("/me")
async def show_me(session: Session, caller: Authenticated) -> Response:
    """Shows who the key or the cookie speaks for: the user, their memberships and the key."""
    return answer(await service.me(session, caller))


# ---- users


@router.get("/users")
async def list_users(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    role: Annotated[Role | None, Query()] = None,
    disabled: Annotated[bool | None, Query()] = None,
) -> dict[str, Any]:
    """Lists users."""
    return (await service.page(session, caller, role, disabled, query)).envelope(user_view)


@router.post("/users", status_code=201)
async def create_user(body: UserIn, request: Request, context: Context, caller: Authenticated, once: Once) -> Response:
    """Adds a user, who gets in with a key that POST /keys makes for them."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            return created(await service.create(session, caller, body), "/users")

    return await once.run(fingerprint_of(request), work)


@router.get("/users/{user_id}")
async def show_user(user_id: UUID, session: Session, caller: Authenticated) -> Response:
    """Shows a user."""
    return answer(user_view(await service.show(session, caller, user_id)))


@router.patch("/users/{user_id}")
async def change_user(
    user_id: UUID, body: UserChange, session: PeopleSession, caller: Authenticated, expected: Expected
) -> Response:
    """Changes a user's role or display name, disables or enables them. The last admin stays one."""
    return answer(await service.change(session, caller, user_id, body, expected))


@router.delete("/users/{user_id}", status_code=204)
async def delete_user(user_id: UUID, session: PeopleSession, caller: Authenticated, expected: Expected) -> None:
    """Deletes a user, their keys and their own credentials."""
    await service.delete(session, caller, user_id, expected)


# ---- keys


@router.get("/keys")
async def list_keys(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    user_id: Annotated[UUID | None, Query()] = None,
    project_id: Annotated[UUID | None, Query()] = None,
) -> dict[str, Any]:
    """Lists one's own keys, and everyone's for admins; of each only the prefix."""
    return (await keys.page(session, caller, user_id, project_id, query)).envelope(key_view)


@router.post("/keys", status_code=201)
async def create_key(body: KeyIn, request: Request, context: Context, caller: Authenticated, once: Once) -> Response:
    """Makes a key. `key` is shown in this answer only; keep it."""

    async def work() -> Response:
        async with context.database.transaction() as session:
            view = await keys.create(session, caller, body)
        return ShownOnce(view, {"key"}, headers={"ETag": f'"{view["revision"]}"', "Location": f"/keys/{view['id']}"})

    return await once.run(fingerprint_of(request), work)


@router.get("/keys/{key_id}")
async def show_key(key_id: UUID, session: Session, caller: Authenticated) -> Response:
    """Shows a key, without the key itself."""
    return answer(key_view(await keys.show(session, caller, key_id)))


@router.delete("/keys/{key_id}", status_code=204)
async def revoke_key(key_id: UUID, session: PeopleSession, caller: Authenticated) -> None:
    """Revokes a key for ever, and ends the logins made from it. May be repeated."""
    await keys.revoke(session, caller, key_id)


# ---- logins: without `Authenticated`, as `logins` says


@router.post("/login")
async def log_in(body: LoginIn, request: Request, context: Context) -> Response:
    """Exchanges a key for a cookie of twelve hours, for browsers."""
    caller = await logins.caller_of(request, body.key.get_secret_value())
    async with context.database.transaction() as session:
        value = await logins.begin(session, caller)
        view = await service.me(session, caller)
    response = Response(to_json(view), media_type=JSON, headers={"Cache-Control": "no-store"})
    logins.set_cookie(request, response, value)
    return response


@router.get("/login")
async def show_login(session: Session, caller: Authenticated) -> Response:
    """The same as GET /me: tells a page whether its cookie still holds."""
    return answer(await service.me(session, caller))


@router.delete("/login", status_code=204)
async def log_out(request: Request, context: Context) -> Response:
    """Ends the login of the cookie. May be repeated."""
    response = Response(status_code=204)
    if (value := request.cookies.get(COOKIE)) is not None:
        check_origin(request, context.settings.cors_origins)
        async with people_change(request, context) as session:
            await logins.end(session, value, request.client.host if request.client else None)
        logins.clear_cookie(request, response)
    return response

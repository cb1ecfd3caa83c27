"""Who may use an endpoint through a gateway: a key with the scope `inference` whose user sees the endpoint's project."""

from collections.abc import Awaitable, Callable
from uuid import UUID

from starlette.requests import Request

from services.app.identity.authenticate import Authenticator, find_caller
from shared.contracts.gateway import Admitted, Shown
from shared.errors import Problem

ProjectOf = Callable[[UUID], Awaitable[UUID | None]]


class Admission:
    """Implements `admit` of `GatewayPort`. `project_of` gives an endpoint's project, or None."""

    def __init__(self, authenticator: Authenticator, origins: list[str], project_of: ProjectOf) -> None:
        self._authenticator = authenticator
        self._origins = origins
        self._project_of = project_of

    async def admit(self, shown: Shown, endpoint_id: UUID) -> Admitted:
        caller = await find_caller(_request(shown), self._authenticator, self._origins)
        if caller is None:
            raise Problem("unauthenticated", "Send a valid key: Authorization: Bearer <key>.")
        caller.require_scope("inference")
        project_id = await self._project_of(endpoint_id)
        if project_id is None or not caller.sees(project_id):
            raise Problem("not_found", "There is no such endpoint.")
        return Admitted(id=str(caller.key_id), user_id=caller.user_id)


def _request(shown: Shown) -> Request:
    """The request's headers again, for the code that finds a caller."""
    named = shown.model_dump(exclude={"method"}, exclude_none=True)
    headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in named.items()]
    return Request({"type": "http", "method": shown.method, "scheme": "http", "path": "/", "headers": headers})

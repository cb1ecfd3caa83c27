"""Who may use an endpoint through the gateway, as the app sees it."""

from uuid import UUID

from starlette.requests import Request

from services.app.identity.authenticate import Authenticator, find_caller
from services.gateway.access import Caller, Credentials
from services.gateway.table import RouteTable
from shared.errors import Problem


class GatewayAccess:
    """A key needs the scope `inference`, and its user must see the endpoint's project."""

    def __init__(self, authenticator: Authenticator, table: RouteTable, origins: list[str]) -> None:
        self._authenticator = authenticator
        self._table = table
        self._origins = origins

    async def authorize(self, credentials: Credentials, endpoint_id: UUID) -> Caller:
        caller = await find_caller(_request(credentials), self._authenticator, self._origins)
        if caller is None:
            raise Problem("unauthenticated", "Send a valid key: Authorization: Bearer <key>.")
        caller.require_scope("inference")
        route = self._table.get(endpoint_id)
        if route is None or not caller.sees(route.project_id):
            raise Problem("not_found", "There is no such endpoint.")
        return Caller(id=str(caller.key_id), user_id=caller.user_id)


def _request(credentials: Credentials) -> Request:
    """The request's headers again, for the code that finds a caller."""
    named = {
        "authorization": credentials.authorization,
        "cookie": credentials.cookie,
        "origin": credentials.origin,
        "host": credentials.host,
    }
    headers = [
        (name.encode(), value.encode("latin-1", "replace")) for name, value in named.items() if value is not None
    ]
    return Request({"type": "http", "method": credentials.method, "scheme": "http", "path": "/", "headers": headers})

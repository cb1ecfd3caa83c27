"""The gateway's question who may use an endpoint, put to the app."""

from dataclasses import asdict
from typing import Protocol
from uuid import UUID

from services.app.context import AppContext
from services.app.endpoints import published
from services.app.identity.admission import Admission
from services.app.identity.authenticate import Authenticator
from services.gateway.access import Caller, Credentials
from services.gateway.table import RouteTable
from shared.contracts.gateway import Admitted, Shown


class Admits(Protocol):
    async def admit(self, shown: Shown, endpoint_id: UUID) -> Admitted: ...


class GatewayAccess:
    """Implements `Access` of the gateway."""

    def __init__(self, app: Admits) -> None:
        self._app = app

    async def authorize(self, credentials: Credentials, endpoint_id: UUID) -> Caller:
        admitted = await self._app.admit(Shown(**asdict(credentials)), endpoint_id)
        return Caller(id=admitted.id, user_id=admitted.user_id)


def access_in_process(context: AppContext, authenticator: Authenticator, table: RouteTable) -> GatewayAccess:
    """For a gateway in the app's process: its table has the project of most endpoints, but not yet that of one that has just
    come to be served.
    """

    async def project_of(endpoint_id: UUID) -> UUID | None:
        route = table.get(endpoint_id)
        return route.project_id if route is not None else await published.project_of(context, endpoint_id)

    return GatewayAccess(Admission(authenticator, context.settings.cors_origins, project_of))

"""How the tasks of an execution call the project's endpoints: through the gateway, with a key that is the job's own.

The key may do nothing but call endpoints of that project, in the name of who asked for the execution. It is drawn from the
installation's secret and the job's id, so it is not stored; its row goes when the execution ends.
"""

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.endpoints.repository import LIVE
from services.app.endpoints.tables import EndpointRow
from services.app.identity.tables import ApiKeyRow
from shared.contracts.flows import EndpointAccess
from shared.jobs.outcomes import Permanent
from shared.security.apikeys import derived_key


async def access(context: AppContext, session: AsyncSession, job: Any, endpoint: str) -> EndpointAccess:
    """`job`: the id, owner and project of an execution's job. Raises `Permanent` (`endpoint_gone`)."""
    found = await _find(session, job, endpoint)
    key = derived_key(context.keyring.derive("keys of executions") + job.id.bytes)
    values = {
        "id": uuid4(), "user_id": job.owner_id, "name": f"execution {job.id}", "prefix": key.prefix, "hash": key.hash,
        "scopes": ["inference"], "project_id": job.project_id, "job_id": job.id,
    }  # fmt: skip
    await session.execute(insert(ApiKeyRow).values(values).on_conflict_do_nothing())
    settings = context.settings
    own = f"http://{'127.0.0.1' if settings.host in ('0.0.0.0', '::') else settings.host}:{settings.port}"  # noqa: S104
    return EndpointAccess(base_url=f"{settings.gateway_url or own}/endpoints/{found}/v1", key=key.plain)


async def _find(session: AsyncSession, job: Any, endpoint: str) -> UUID:
    named = EndpointRow.name == endpoint
    try:
        named = or_(named, EndpointRow.id == UUID(endpoint))
    except ValueError:
        pass  # it is a name
    statement = select(EndpointRow.id).where(
        EndpointRow.project_id == job.project_id, EndpointRow.state.in_(LIVE), named
    )
    found = (await session.execute(statement.limit(1))).scalar_one_or_none()
    if found is None:
        raise Permanent("endpoint_gone", "There is no such endpoint in the flow's project.")
    return found

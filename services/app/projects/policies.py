"""The policy that holds in a project."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.projects import repository
from services.app.projects.schemas import Policy, effective_policy


async def of(session: AsyncSession, project_id: UUID | None) -> Policy:
    """The project's own policy over the defaults; the defaults where there is no project."""
    project = await repository.get(session, project_id) if project_id is not None else None
    return Policy() if project is None else effective_policy(project)

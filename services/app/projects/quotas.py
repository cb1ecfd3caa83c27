"""What a project may still have: checked in the transaction that adds something."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.projects import repository
from services.app.projects.schemas import Quotas, effective_quotas
from shared.errors import Problem

WORDS = {"jobs_in_flight": "jobs in flight", "bytes": "bytes of models"}


async def check(session: AsyncSession, project_id: UUID | None, **adding: int) -> None:
    """Problem `quota_exceeded` when the project would get more than it may; `adding` are fields of `Quotas`.

    Checks of one project wait for each other until the transaction ends, so that two cannot both take the last place.
    What belongs to no project has no quota. A project that is gone: `reference_not_found`.
    """
    names = [name for name in Quotas.model_fields if adding.get(name)]
    if unknown := adding.keys() - Quotas.model_fields.keys():
        raise ValueError(f"no such quota: {', '.join(sorted(unknown))}")
    if project_id is None or not names:
        return
    project = await repository.get(session, project_id, lock=True)
    if project is None:
        raise Problem("reference_not_found", "There is no such project any more.", param="project_id")
    limits = effective_quotas(project).model_dump()
    used = await repository.used(session, project_id, names)
    over = [name for name in names if used[name] + adding[name] > limits[name]]
    if over:
        shown = [{"quota": name, "limit": limits[name], "used": used[name], "adding": adding[name]} for name in over]
        sentences = [
            f"The project may have {limits[name]} {WORDS.get(name, name)}; it has {used[name]}, and this adds {adding[name]}."
            for name in over
        ]
        raise Problem("quota_exceeded", " ".join(sentences), members={"quotas": shown})

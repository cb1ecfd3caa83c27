"""The first start: an admin with a key, and a project to begin in."""

from collections.abc import Awaitable, Callable
from uuid import uuid4

from services.app.audit import service as audit
from services.app.identity import keys, repository
from services.app.identity.tables import UserRow
from services.app.projects.tables import MemberRow, ProjectRow
from shared.clock import now
from shared.db.engine import Database

ADMIN, PROJECT = "admin", "default"


async def ensure_admin(database: Database, keep: Callable[[str], Awaitable[object]]) -> str | None:
    """Where there is no user yet: make `admin`, the project `default`, and the key that is returned, in full and once.

    None when there is one. Of several processes that start at once, one makes them. `keep` is given the key before the
    commit: whoever is killed after that has it, and whoever is killed before it makes another.
    """
    async with database.transaction() as session:
        if not await repository.lock_first_start(session):
            return None
        admin = UserRow(id=uuid4(), name=ADMIN, display_name=None, role="admin", created_at=now(), revision=1)
        moment = now()
        project = ProjectRow(
            id=uuid4(), name=PROJECT, description="The project to begin in.", policy={}, quotas={}, created_by=admin.id,
            created_at=moment, updated_at=moment, revision=1,
        )  # fmt: skip
        session.add_all([admin, project])
        await session.flush()
        session.add(MemberRow(project_id=project.id, user_id=admin.id, role="manager", created_at=moment))
        await session.flush()
        await audit.record(session, None, "user.create", "user", admin.id, name=ADMIN, role="admin")
        await audit.record(session, None, "project.create", "project", project.id, project_id=project.id, name=PROJECT)
        key = await keys.create_first(session, admin.id)
        await keep(key)
        return key

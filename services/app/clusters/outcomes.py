"""What the changes of a registration mean for its cluster; called in the transaction of the change."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.clusters import repository
from services.app.context import AppContext
from shared.contracts.deployments import Registered
from shared.jobs.ledger import JobView


class RegisterOutcome:
    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def __call__(self, session: AsyncSession, job: JobView, spec: dict[str, Any]) -> None:
        cluster = await repository.get(session, UUID(spec["cluster_id"]), lock=True)
        if cluster is None or cluster.state == "deleted":
            return
        match job["state"]:
            case "pending" if job["attempt"] > 1:
                cluster.state, cluster.reason = "registering", None
            case "succeeded":
                found = Registered.model_validate(job["result"])
                cluster.state, cluster.reason = "available", None
                cluster.facts = {"version": found.version, **found.facts}
                cluster.observed_at = datetime.now(UTC)
            case "failed" | "cleanup_required":
                cluster.state, cluster.reason = "error", job["error"]["message"]
            case "cancelled":
                cluster.state, cluster.reason = "deleted", "The registration was cancelled."
                cluster.sealed, cluster.access, cluster.deleted_at = None, {}, datetime.now(UTC)
        cluster.revision += 1
        cluster.updated_at = datetime.now(UTC)
        await session.flush()

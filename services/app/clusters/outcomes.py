"""What the changes of jobs mean for clusters; called in the transaction of the change."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.clusters import onboarding, repository
from services.app.clusters.service import CLUSTERS, forget
from services.app.clusters.tables import ClusterRow
from services.app.context import AppContext
from services.app.endpoints import repository as endpoints
from shared.contracts.clusters import CredentialsChecked, Registered
from shared.errors import Problem
from shared.jobs.ledger import JobView

FAILED = ("failed", "cleanup_required")


class _Outcome:
    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def __call__(self, session: AsyncSession, job: JobView, spec: dict[str, Any]) -> None:
        cluster = await repository.get(session, UUID(spec["cluster_id"]), lock=True)
        is_retry = job["state"] == "pending" and job["attempt"] > 1
        if cluster is None or cluster.state == "deleted":
            if is_retry:
                raise Problem("not_retryable", "The cluster has been deleted since.")
            return
        if is_retry:
            await self.again(session, cluster, job)
        elif job["state"] != "pending":
            await self.apply(session, cluster, job)
        cluster.revision += 1
        cluster.updated_at = datetime.now(UTC)
        await session.flush()
        self._context.hub.publish_after_commit(session, CLUSTERS)

    async def again(self, session: AsyncSession, cluster: ClusterRow, job: JobView) -> None:
        """Somebody retries the job; raises a problem to refuse that."""

    async def apply(self, session: AsyncSession, cluster: ClusterRow, job: JobView) -> None:
        raise NotImplementedError


class RegisterOutcome(_Outcome):
    async def again(self, session: AsyncSession, cluster: ClusterRow, job: JobView) -> None:
        if cluster.state != "error":
            raise Problem("conflict", f"The cluster is {cluster.state}: it has been registered since.")
        await onboarding.check_name_free(session, cluster.name)
        cluster.state, cluster.reason = "registering", None

    async def apply(self, session: AsyncSession, cluster: ClusterRow, job: JobView) -> None:
        if job["state"] == "succeeded":
            cluster.state, cluster.reason = "available", None
            _take_facts(cluster, Registered.model_validate(job["result"]))
        elif job["state"] in FAILED:
            cluster.state, cluster.reason = "error", job["error"]["message"]
        elif job["state"] == "cancelled":
            await forget(session, cluster, "The registration was cancelled.")


class CredentialsOutcome(_Outcome):
    """The new credentials take the place of the old ones when all has been checked, and not before."""

    async def again(self, session: AsyncSession, cluster: ClusterRow, job: JobView) -> None:
        if await repository.access_of(session, UUID(job["id"])) is None:
            raise Problem("conflict", "Other credentials have been sent since; send these again.")
        if cluster.state == "error":
            await onboarding.check_name_free(session, cluster.name)
            cluster.state, cluster.reason = "registering", None

    async def apply(self, session: AsyncSession, cluster: ClusterRow, job: JobView) -> None:
        if job["state"] == "succeeded":
            access = await repository.access_of(session, UUID(job["id"]))
            if access is None:
                raise Problem("conflict", "Other credentials have been sent since.")
            found = CredentialsChecked.model_validate(job["result"])
            cluster.sealed, cluster.access = access.sealed, found.access
            _take_facts(cluster, found)
            if cluster.state == "registering":
                cluster.state, cluster.reason = "available", None
            await repository.forget_access(session, cluster.id)
            return
        if job["state"] == "cancelled":
            await repository.forget_access(session, cluster.id)
        if job["state"] in (*FAILED, "cancelled") and cluster.state == "registering":
            cluster.state = "error"
            cluster.reason = (job["error"] or {}).get("message") or "The check of its new credentials was cancelled."


class InspectOutcome(_Outcome):
    async def apply(self, session: AsyncSession, cluster: ClusterRow, job: JobView) -> None:
        if job["state"] == "succeeded":
            _take_facts(cluster, Registered.model_validate(job["result"]))


class DeleteOutcome(_Outcome):
    async def again(self, session: AsyncSession, cluster: ClusterRow, job: JobView) -> None:
        if await endpoints.of_cluster(session, cluster.id):
            raise Problem("in_use", "Endpoints run on this cluster again; delete them first.")
        cluster.state, cluster.reason = "deleting", None

    async def apply(self, session: AsyncSession, cluster: ClusterRow, job: JobView) -> None:
        if job["state"] == "succeeded":
            await forget(session, cluster, None)
        elif job["state"] in (*FAILED, "cancelled"):
            why = (job["error"] or {}).get("message") or "it was cancelled."
            # Until its observer has looked: that says whether it can be used.
            cluster.state, cluster.reason = "unavailable", f"The cluster was not deleted: {why}"


def _take_facts(cluster: ClusterRow, found: Registered) -> None:
    cluster.facts = found.facts
    cluster.observed_at = datetime.now(UTC)

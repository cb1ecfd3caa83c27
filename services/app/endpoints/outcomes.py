"""What the changes of jobs mean for endpoints; called in the transaction of the change."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.endpoints import repository, service
from services.app.endpoints.tables import EndpointRow
from shared.contracts.deployments import Deployment, ScaleResult
from shared.jobs.ledger import JobView


class _Outcome:
    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def __call__(self, session: AsyncSession, job: JobView, spec: dict[str, Any]) -> None:
        endpoint = await repository.get(session, UUID(spec["endpoint_id"]), lock=True)
        if endpoint is None or endpoint.phase == "deleted":
            return
        self.apply(endpoint, job, spec)
        service.settle(endpoint)
        await session.flush()
        self._context.hub.publish_after_commit(session, service.ENDPOINTS)

    def apply(self, endpoint: EndpointRow, job: JobView, spec: dict[str, Any]) -> None:
        raise NotImplementedError


class DeployOutcome(_Outcome):
    def apply(self, endpoint: EndpointRow, job: JobView, spec: dict[str, Any]) -> None:
        match job["state"]:
            case "pending" if job["attempt"] > 1:
                endpoint.phase, endpoint.reason = "deploying", None
            case "succeeded":
                made = Deployment.model_validate(job["result"])
                endpoint.phase, endpoint.reason, endpoint.engine = "serving", None, made.engine
                endpoint.desired = made.model_dump(mode="json", include=_DESIRED)
                endpoint.published_at = datetime.now(UTC)
            case "failed" | "cleanup_required":
                endpoint.phase, endpoint.reason = "failed", job["error"]["message"]
            case "cancelled":
                endpoint.phase, endpoint.reason = "deleted", "The deployment was cancelled."
                endpoint.deleted_at = datetime.now(UTC)


_DESIRED = {"replicas", "concurrency", "context_tokens", "memory_bytes", "generation", "apis"}


class ScaleOutcome(_Outcome):
    def apply(self, endpoint: EndpointRow, job: JobView, spec: dict[str, Any]) -> None:
        match job["state"]:
            case "pending" if job["attempt"] > 1:
                endpoint.phase = "updating"
            case "succeeded":
                result = ScaleResult.model_validate(job["result"])
                endpoint.phase = "serving"
                endpoint.desired = {**endpoint.desired, "replicas": result.replicas, "generation": result.generation}
            case "failed" | "cleanup_required" | "cancelled":
                endpoint.phase = "serving"


class RemoveOutcome(_Outcome):
    def apply(self, endpoint: EndpointRow, job: JobView, spec: dict[str, Any]) -> None:
        match job["state"]:
            case "pending" if job["attempt"] > 1:
                endpoint.phase = "deleting"
            case "succeeded":
                endpoint.phase, endpoint.reason, endpoint.deleted_at = "deleted", None, datetime.now(UTC)
            case "failed" | "cleanup_required" | "cancelled":
                endpoint.phase = "serving" if endpoint.desired else "failed"
                endpoint.reason = (job["error"] or {}).get("message")

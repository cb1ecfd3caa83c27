"""What the changes of jobs mean for endpoints; called in the transaction of the change."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.endpoints import repository, service
from services.app.endpoints.tables import EndpointRow
from shared.contracts.deployments import Deployment, ScaleResult, UpdateSpec
from shared.errors import Problem
from shared.jobs.ledger import JobView


class _Outcome:
    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def __call__(self, session: AsyncSession, job: JobView, spec: dict[str, Any]) -> None:
        endpoint = await repository.get(session, UUID(spec["endpoint_id"]), lock=True)
        if endpoint is None or endpoint.phase == "deleted":
            if job["state"] == "pending" and job["attempt"] > 1:
                raise Problem("not_retryable", "The endpoint has been deleted since.")
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


class UpdateOutcome(_Outcome):
    def apply(self, endpoint: EndpointRow, job: JobView, spec: dict[str, Any]) -> None:
        match job["state"]:
            case "pending" if job["attempt"] > 1:
                endpoint.phase = "updating"
            case "succeeded":
                made, served = Deployment.model_validate(job["result"]), UpdateSpec.model_validate(spec)
                endpoint.phase, endpoint.engine = "serving", made.engine
                endpoint.model_id, endpoint.digest = served.model_id, served.digest
                endpoint.deploy_config = served.config.model_dump(mode="json", exclude_none=True)
                endpoint.tuning = served.tuning.kept()
                endpoint.desired = made.model_dump(mode="json", include=_DESIRED)
            case "failed" | "cleanup_required" | "cancelled":
                endpoint.phase = "serving"


_DESIRED = {"replicas", "concurrency", "context_tokens", "memory_bytes", "generation", "apis", "autoscale", "plan"}


class ScaleOutcome(_Outcome):
    def apply(self, endpoint: EndpointRow, job: JobView, spec: dict[str, Any]) -> None:
        match job["state"]:
            case "pending" if job["attempt"] > 1:
                endpoint.phase = "updating" if spec["before"] else "deploying"
            case "succeeded":
                result = ScaleResult.model_validate(job["result"])
                endpoint.phase = "serving" if result.replicas else "stopped"  # which keeps how many it had
                kept = {"replicas": result.replicas} if result.replicas else {}
                endpoint.desired = {**endpoint.desired, **kept, "generation": result.generation}
            case "failed" | "cleanup_required" | "cancelled":
                endpoint.phase = "serving" if spec["before"] else "stopped"


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

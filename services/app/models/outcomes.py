"""What the changes of import and scan jobs mean for models and scans; called in the transaction of the change."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from pydantic_core import from_json
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.models import holdings, repository
from services.app.models.tables import ModelFileRow, ModelRow
from shared.contracts.deployments import ScanSummary
from shared.contracts.models import ImportResult, Manifest
from shared.errors import Problem
from shared.jobs.ledger import JobView
from shared.objects.store import manifest_key

log = structlog.get_logger(__name__)


class ImportOutcome:
    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def __call__(self, session: AsyncSession, job: JobView, spec: dict[str, Any]) -> None:
        model = await repository.get(session, UUID(spec["model_id"]), lock=True)
        is_retry = job["state"] == "pending" and job["attempt"] > 1
        if model is None or model.state == "deleted":
            if is_retry:
                raise Problem("not_retryable", "The model has been deleted since; add it anew.")
            return
        match job["state"]:
            case "pending" if is_retry:
                _set(model, "importing", None)
            case "succeeded":
                await self._imported(session, model, ImportResult.model_validate(job["result"]))
            case "failed" | "cleanup_required":
                _set(model, "failed", job["error"]["message"])
            case "cancelled":
                _set(model, "deleted", "The import was cancelled.")
                model.deleted_at = datetime.now(UTC)
                await holdings.release(session, model.id)  # the next sweep frees them
        await session.flush()

    async def _imported(self, session: AsyncSession, model: ModelRow, result: ImportResult) -> None:
        manifest = Manifest.model_validate_json(await self._context.objects.get(manifest_key(result.digest)))
        _set(model, "active", None)
        model.digest, model.size, model.source_revision = result.digest, result.size, result.revision
        model.facts = result.metadata.model_dump(mode="json", exclude_none=True)
        model.description = model.description or result.metadata.description
        await holdings.release(session, model.id)  # the claims: an archive's paths were not yet the final ones
        session.add_all(
            ModelFileRow(model_id=model.id, path=file.path, size=file.size, sha256=file.sha256)
            for file in manifest.files
        )


def _set(model: ModelRow, state: str, reason: str | None) -> None:
    model.state, model.reason = state, reason
    model.revision += 1
    model.updated_at = datetime.now(UTC)


class ScanOutcome:
    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def __call__(self, session: AsyncSession, job: JobView, spec: dict[str, Any]) -> None:
        scan = await repository.scan_of_job(session, UUID(job["id"]))
        if scan is None:
            return
        match job["state"]:
            case "pending" if job["attempt"] > 1:
                await _check_there(session, scan.model_id)
                scan.status, scan.reason, scan.ended_at = "running", None, None
            case "succeeded":
                summary = ScanSummary.model_validate(job["result"])
                report = await self._context.objects.get(summary.report)
                scan.status, scan.report, scan.ended_at = summary.status, from_json(report), datetime.now(UTC)
            case "failed" | "cleanup_required":
                scan.status, scan.reason, scan.ended_at = "error", job["error"]["message"], datetime.now(UTC)
            case "cancelled":
                scan.status, scan.reason, scan.ended_at = "cancelled", "The scan was cancelled.", datetime.now(UTC)
        await session.flush()
        model = await repository.get(session, scan.model_id, lock=True)
        if model is not None and scan.status not in ("running", "cancelled") and model.digest == scan.digest:
            model.scan_status = scan.status
            model.revision += 1


async def _check_there(session: AsyncSession, model_id: UUID) -> None:
    model = await repository.get(session, model_id)
    if model is None or model.state == "deleted":
        raise Problem("not_retryable", "The model has been deleted since.")

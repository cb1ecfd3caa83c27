"""Scans of models, their history, and the gate that a deploy passes."""

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.identity.caller import Caller
from services.app.models import repository, service
from services.app.models.tables import ModelRow, ScanOverrideRow, ScanRow
from services.app.projects import policies, quotas
from services.app.wizards.contract import Visit
from shared.clock import iso
from shared.contracts.deployments import ScanSpec
from shared.errors import Fault, Problem
from shared.jobs import views
from shared.jobs.ledger import JobRequest

SEVERITIES = ("low", "medium", "high", "critical")
VERDICTS = ("safe", *SEVERITIES, "error")
SHOWN_FINDINGS = 10

RESULT_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": "scan"},
        "id": {"type": "string", "format": "uuid"},
        "name": {"type": "string"},
        "href": {"type": "string"},
        "status": {"enum": [*VERDICTS, None]},
        "total_issues": {"type": "integer"},
        "by_severity": {"type": "object", "additionalProperties": {"type": "integer"}},
        "files_scanned": {"type": "integer"},
        "files_skipped": {"type": "integer"},
        "issues": {"type": "array"},
    },
}


def _verdict(scan: ScanRow) -> str | None:
    """None while the scan runs, and for one that was cancelled: neither has said anything of the files."""
    return scan.status if scan.status in VERDICTS else None


def view(scan: ScanRow, *, whole: bool = False) -> dict[str, Any]:
    report = scan.report or {}
    shown = {
        "object": "scan",
        "id": str(scan.id),
        "model_id": str(scan.model_id),
        "job_id": str(scan.job_id),
        "status": _verdict(scan),
        "digest": scan.digest,
        "reason": scan.reason,
        "total_issues": report.get("total_issues"),
        "by_severity": report.get("by_severity"),
        "files_scanned": report.get("files_scanned"),
        "files_skipped": report.get("files_skipped"),
        "created_at": iso(scan.created_at),
        "ended_at": iso(scan.ended_at),
    }
    if whole:
        shown |= {name: report.get(name, []) for name in ("issues", "errors", "skipped")}
        shown["scanners"] = report.get("scanners", {})
    return shown


async def faults(session: AsyncSession, model_id: UUID) -> list[Fault]:
    model = await repository.get(session, model_id)
    if model is not None and model.provider_type == "cloud_model":
        return [Fault("model_id", "not_scannable", "A cloud model has no files to scan.")]
    return []


async def start(visit: Visit, model_id: UUID, *, topic: UUID | None = None) -> JobRequest:
    """Begin a scan. `scan_in_progress` (409) names the job of the one that runs."""
    model = await service.visible(visit.session, visit.caller, model_id, lock=True)
    if not visit.caller.works_in(model.project_id):
        raise Problem("forbidden", "You may only read what is in this model's project.", param="model_id")
    if model.provider_type == "cloud_model":
        raise Problem("not_scannable", "A cloud model has no files to scan.", param="model_id")
    if model.state != "active" or model.digest is None:
        raise Problem("model_not_ready", f"The model is {model.state}.", param="model_id")
    running = await repository.running_scan(visit.session, model_id)
    if running is not None:
        job = await views.load_one(visit.session, running.job_id)
        raise Problem(
            "scan_in_progress", f"A scan of this model runs already: job {running.job_id}.", param="model_id",
            members={"job_id": str(running.job_id), "job": job},
        )  # fmt: skip
    await quotas.check(visit.session, model.project_id, jobs_in_flight=1)
    scan_id = uuid4()
    request = JobRequest(
        visit.context.jobs.latest("scan_model"), ScanSpec(model_id=model_id, digest=model.digest, scan_id=scan_id),
        project_id=model.project_id, owner_id=visit.caller.user_id, key_id=visit.caller.key_id,
        topic=topic, resource_type="model", resource_id=model_id,
    )  # fmt: skip
    visit.session.add(ScanRow(id=scan_id, model_id=model_id, job_id=request.id, status="running", digest=model.digest))
    await visit.session.flush()
    return request


async def result_of(session: AsyncSession, job_id: UUID) -> dict[str, Any] | None:
    scan = await repository.scan_of_job(session, job_id)
    if scan is None:
        return None
    report = scan.report or {}
    return {
        "type": "scan", "id": str(scan.id), "name": f"Scan of {iso(scan.created_at)}", "status": _verdict(scan),
        "href": f"/models/{scan.model_id}/scans/{scan.id}",
        **{name: report.get(name) for name in ("total_issues", "by_severity", "files_scanned", "files_skipped")},
        "issues": report.get("issues", [])[:100],
    }  # fmt: skip


# ---- the gate


async def gate(session: AsyncSession, model: ModelRow, project_id: UUID, digest: str | None) -> None:
    """Refuse to deploy files that are not scanned, or whose scan found too much, unless policy or an override says so."""
    if model.provider_type == "cloud_model" or digest is None:
        return
    if await repository.override(session, model.id, digest) is not None:
        return
    policy = await policies.of(session, project_id)
    scan = await repository.latest_scan(session, model.id, digest)
    if scan is None:
        if policy.require_scan:
            raise Problem(
                "scan_required", "The model's files have not been scanned yet; scan the model first.", "model_id"
            )
        return
    if scan.status == "error":
        why = scan.reason or "some files could not be judged"
        raise _blocked(scan, f"The latest scan ended with an error: {why.rstrip('.')}.")
    if scan.status in SEVERITIES and SEVERITIES.index(scan.status) >= SEVERITIES.index(policy.block_severity):
        titles = ", ".join(sorted({issue["title"] for issue in (scan.report or {}).get("issues", [])})[:3])
        raise _blocked(scan, f"The latest scan found {scan.status} issues: {titles}.")


def _blocked(scan: ScanRow, detail: str) -> Problem:
    report = scan.report or {}
    found = sorted(report.get("issues", []), key=lambda issue: -SEVERITIES.index(issue["severity"]))
    members = {
        "scan_id": str(scan.id),
        "findings": found[:SHOWN_FINDINGS],
        "scan_errors": report.get("errors", [])[:SHOWN_FINDINGS],
    }
    return Problem("scan_blocked", detail, param="model_id", members=members)


def check_may_override(caller: Caller, model: ModelRow) -> None:
    caller.require("admin")
    if model.project_id is None:
        caller.require_unbound()


async def record_override(session: AsyncSession, caller: Caller, model_id: UUID, reason: str) -> ScanOverrideRow:
    """An admin lets the model's present files through the gate, and says why."""
    model = await service.visible(session, caller, model_id)
    check_may_override(caller, model)
    if model.digest is None:
        raise Problem("not_scannable", "The model has no files.")
    made = ScanOverrideRow(id=uuid4(), model_id=model_id, digest=model.digest, reason=reason, created_by=caller.user_id)
    session.add(made)
    await session.flush()
    await session.refresh(made)
    details = {"digest": model.digest, "reason": reason}
    await audit.record(session, caller, "scan.override", "model", model_id, project_id=model.project_id, **details)
    return made

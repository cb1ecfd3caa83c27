"""Scan a model: find its files, look through them in child processes, keep the report."""

from pydantic import BaseModel

from services.model.jobs.tools import ModelTools
from services.model.scan.schemas import ScanFile, ScanRequest
from services.model.scan.service import scan_model as scan
from shared.contracts.deployments import ScanSpec, ScanSummary
from shared.contracts.models import ScanReport
from shared.jobs.declare import RetryPolicy, job, step
from shared.jobs.outcomes import Permanent
from shared.jobs.run import Run, Step
from shared.objects.store import blob_key


class Found(BaseModel):
    spec: ScanSpec
    files: int
    size: int


class Scanned(BaseModel):
    spec: ScanSpec
    key: str


def _report_key(spec: ScanSpec) -> str:
    return f"scans/{spec.scan_id}.json"


@step("Fetch the files", weight=1)
async def fetch(ctx: Step, spec: ScanSpec) -> Found:
    """Every file of the digest must be there: what is missing cannot be judged."""
    tools: ModelTools = ctx.tools
    manifest = await tools.manifest(spec.digest)
    for file in manifest.files:
        if not await tools.objects.exists(blob_key(file.sha256)):
            raise Permanent("file_missing", f"{file.path} is not in the object store.")
    return Found(spec=spec, files=len(manifest.files), size=manifest.size)


async def _forget_report(ctx: Step, found: Found, _result: object) -> None:
    tools: ModelTools = ctx.tools
    await tools.objects.delete(_report_key(found.spec))


@step("Scan the files", weight=10, undo=_forget_report, retry=RetryPolicy(attempts=2, timeout=4 * 3600.0))
async def scan_files(ctx: Step, found: Found) -> Scanned:
    tools: ModelTools = ctx.tools
    manifest = await tools.manifest(found.spec.digest)
    async with tools.placed(manifest.files) as places:
        files = [ScanFile(path=file.path, location=str(place), size=file.size) for file, place in places]
        report = await scan(ScanRequest(digest=found.spec.digest, files=files), on_progress=ctx.progress)
    key = _report_key(found.spec)
    await tools.objects.put(key, report.model_dump_json().encode())
    return Scanned(spec=found.spec, key=key)


@step("Report", weight=1)
async def report(ctx: Step, scanned: Scanned) -> ScanSummary:
    tools: ModelTools = ctx.tools
    made = ScanReport.model_validate_json(await tools.objects.get(scanned.key))
    return ScanSummary(
        scan_id=scanned.spec.scan_id, status=made.status, total_issues=made.total_issues, by_severity=made.by_severity,
        files_scanned=made.files_scanned, files_skipped=made.files_skipped, report=scanned.key,
    )  # fmt: skip


@job("scan_model", steps=[fetch, scan_files, report], slots=2, deadline=6 * 3600)
async def scan_model(run: Run, spec: ScanSpec) -> ScanSummary:
    found = await run.step(fetch, spec)
    scanned = await run.step(scan_files, found)
    summary: ScanSummary = await run.step(report, scanned)
    return summary

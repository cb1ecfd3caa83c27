"""Puts the reports of single files together into one of the model."""

from collections import Counter
from importlib.metadata import version
from typing import get_args

from services.model.scan.schemas import FileReport
from shared.contracts.models import ScanReport, ScanStatus, Severity

_ORDER: tuple[Severity, ...] = get_args(Severity)  # from low to critical
_SCANNERS = ("modelaudit-picklescan", "picklescan", "stepway")


def summarize(digest: str, reports: list[FileReport], seconds: float) -> ScanReport:
    issues = sorted(
        (issue for report in reports for issue in report.issues),
        key=lambda issue: (-_ORDER.index(issue.severity), issue.file, issue.title),
    )
    errors = [error for report in reports for error in report.errors]
    counts = Counter(issue.severity for issue in issues)
    status: ScanStatus = "error" if errors else issues[0].severity if issues else "safe"
    skipped = [f"{report.path}: {report.skipped}" for report in reports if report.skipped]
    return ScanReport(
        status=status,
        digest=digest,
        total_issues=len(issues),
        by_severity={severity: counts[severity] for severity in _ORDER},
        files_scanned=len(reports) - len(skipped),
        files_skipped=len(skipped),
        skipped=skipped,
        issues=issues,
        errors=errors,
        scanners={name: version(name) for name in _SCANNERS},
        duration_seconds=round(seconds, 3),
    )

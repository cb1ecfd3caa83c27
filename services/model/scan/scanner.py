"""Looks into files with every check that knows their kind. Runs in the child process that `service` starts."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from services.model.scan import limits
from services.model.scan.checks.protocol import Check
from services.model.scan.checks.registry import CHECKS
from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import identify
from services.model.scan.report import summarize
from services.model.scan.schemas import FileReport, ScanFile, ScanRequest
from shared.contracts.models import ScanReport

Progress = Callable[[float | None, str], None]


def scan(request: ScanRequest, progress: Progress) -> ScanReport:
    """Look into all files, one after the other. A file that cannot be read is an error in the report."""
    started = time.monotonic()
    reports: list[FileReport] = []
    for number, file in enumerate(request.files):
        progress(number / len(request.files), file.path)
        reports.append(scan_file(file))
    return summarize(request.digest, reports, time.monotonic() - started)


def scan_in_child(request: ScanRequest, progress: Progress) -> ScanReport:
    """As `scan`; each progress message is the JSON of a finished FileReport, so that a crash loses one file only.

    The alarm is the kernel's: it ends the process even when a native scanner hangs.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    started = time.monotonic()
    reports: list[FileReport] = []
    for number, file in enumerate(request.files, 1):
        signal.setitimer(signal.ITIMER_REAL, request.seconds_per_file)
        reports.append(scan_file(file))
        progress(number / len(request.files), reports[-1].model_dump_json())
    signal.setitimer(signal.ITIMER_REAL, 0)
    return summarize(request.digest, reports, time.monotonic() - started)


def scan_file(file: ScanFile) -> FileReport:
    findings = Findings(inspect=lambda item: _inspect(item, findings))
    item = Item.of_file(file.path, Path(file.location), file.size)
    try:
        item.size = Path(file.location).stat().st_size
        if item.size != file.size:
            findings.error(item, "file", f"The file has {item.size} bytes, not {file.size} as the manifest says.")
        _inspect(item, findings)
    except OSError as error:
        findings.error(item, "file", f"The file cannot be read: {error.strerror or type(error).__name__}.")
    return FileReport(path=file.path, skipped=findings.skipped, issues=findings.issues, errors=findings.errors)


def _inspect(item: Item, findings: Findings) -> None:
    try:
        if item.depth > limits.MAX_DEPTH:
            findings.error(item, "depth", "Archives are nested too deeply to be looked into.")
            return
        kinds = identify(item)
        for check in CHECKS:
            if check.KINDS & kinds:
                _run(check, item, findings)
    finally:
        item.close()


def _run(check: Check, item: Item, findings: Findings) -> None:
    try:
        check.look(item, findings)
    except Unreadable as error:
        findings.error(item, check.NAME, f"This file could not be judged: {str(error).rstrip('.')}.")
    except OSError:
        raise
    except Exception as error:  # a fault of the check itself: the file counts as not judged, the others go on
        findings.error(item, check.NAME, f"The check failed: {type(error).__name__}.")

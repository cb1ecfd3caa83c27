"""Scans a model in a child process with limits. `scanner` is the child's half; the job scan_model calls this."""

import signal
import time
from collections.abc import Callable

from services.model.scan.report import summarize
from services.model.scan.schemas import FileReport, ScanRequest
from shared.contracts.models import ScanError, ScanReport
from shared.jobs.child import ChildDied, ChildTimeout, run_child
from shared.telemetry.traces import traced

_TARGET = "services.model.scan.scanner:scan_in_child"
DEFAULT_MEMORY = 2 * 1024**3
DEFAULT_TIMEOUT = 3600.0

Progress = Callable[[float | None, str], None]


@traced("scan files")
async def scan_model(
    request: ScanRequest,
    *,
    on_progress: Progress | None = None,
    memory_bytes: int = DEFAULT_MEMORY,
    timeout: float = DEFAULT_TIMEOUT,
) -> ScanReport:
    """The report on all files of the request. Never raises for what a file does to a scanner.

    A file on which the child dies, or which takes longer than `request.seconds_per_file`, is an error in the report;
    the rest goes on in a new child. `timeout` is in seconds, for all; what is not reached is an error too.
    """
    started = time.monotonic()
    reports: list[FileReport] = []
    while len(reports) < len(request.files):
        remaining = timeout - (time.monotonic() - started)
        rest = request.model_copy(update={"files": request.files[len(reports) :]})
        try:
            await _scan_rest(rest, reports, len(request.files), on_progress, memory_bytes, max(remaining, 0.01))
        except ChildTimeout:
            message = f"The scan of the model took longer than {timeout:g} seconds."
            reports += [_failed(file.path, message) for file in request.files[len(reports) :]]
        except ChildDied as error:
            if len(reports) < len(request.files):
                path = request.files[len(reports)].path
                reports.append(_failed(path, _reason(error, request.seconds_per_file)))
    return summarize(request.digest, reports, time.monotonic() - started)


async def _scan_rest(
    rest: ScanRequest,
    reports: list[FileReport],
    total: int,
    on_progress: Progress | None,
    memory_bytes: int,
    timeout: float,
) -> None:
    """Scan `rest` in one child; what it finished is in `reports`, even if it dies."""

    def finished(_: float | None, message: str) -> None:
        reports.append(FileReport.model_validate_json(message))
        if on_progress is not None:
            on_progress(len(reports) / total, reports[-1].path)

    await run_child(_TARGET, rest, ScanReport, memory_bytes=memory_bytes, timeout=timeout, on_progress=finished)


def _reason(error: ChildDied, seconds: float) -> str:
    if error.signal == signal.SIGALRM:
        return f"The scan of the file took longer than {seconds:g} seconds."
    return f"The scanner did not survive the file. {error}"


def _failed(path: str, message: str) -> FileReport:
    return FileReport(path=path, errors=[ScanError(file=path, message=message, check="child")])

"""The scanner, but with files that kill it by their names. Run in the child by test_service."""

import os
import signal
import time
from collections.abc import Callable

from services.model.scan import scanner
from services.model.scan.schemas import FileReport, ScanFile, ScanRequest
from shared.contracts.models import ScanReport

_true_scan_file = scanner.scan_file


def _scan_file(file: ScanFile) -> FileReport:
    if file.path == "segfault.txt":
        os.kill(os.getpid(), signal.SIGSEGV)
    if file.path == "hang.txt":
        time.sleep(600)
    if file.path == "memory.txt":
        bytearray(4 * 1024**3)
    return _true_scan_file(file)


def scan(request: ScanRequest, progress: Callable[[float | None, str], None]) -> ScanReport:
    scanner.scan_file = _scan_file
    return scanner.scan_in_child(request, progress)

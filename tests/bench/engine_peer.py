"""The engine's figures (`tests.bench.engine`), with DBOS of locks/bench.txt beside it in an environment of its own."""

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "locks" / "bench.txt"
PEER = ROOT / "bench-results" / "dbos-venv"  # kept: the next run need not install again
SECONDS = 400


def run(quick: bool) -> list[Figure]:
    command = [sys.executable, "-m", "tests.bench.engine", "--peer", str(_peer())]
    measured = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=SECONDS)
    told = json.loads(measured.stdout)
    ours, theirs = told["stepway"], told["dbos"]
    figures = [
        Figure(
            f"steps of {count} job{'s' if count > 1 else ''} at a time", ours[f"steps_per_second_{count}"], "1/s",
            theirs[f"steps_per_second_{count}"], "1/s DBOS", at_least=2,
        )
        for count in (1, 10)
    ]  # fmt: skip
    start, event = ours["start_latency_ms"], ours["event_to_readers_ms"]
    return [
        *figures,
        Figure("job made → first step, p50, without HTTP", start["p50"], "ms", note=_spread(start)),
        Figure(f"event → {event['readers']} readers, p99, without HTTP", event["p99"], "ms", note=_spread(event)),
    ]


def _spread(one: dict[str, Any]) -> str:
    return f"p50 {one['p50']:.1f} ms, p99 {one['p99']:.1f} ms"


def _peer() -> Path:
    """The interpreter of an environment with what the lock names."""
    python, done = PEER / "bin" / "python", PEER / "lock.txt"
    if not done.exists() or done.read_bytes() != LOCK.read_bytes():
        venv.create(PEER, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--require-hashes", "-r", str(LOCK)], check=True, timeout=SECONDS)
        done.write_bytes(LOCK.read_bytes())
    return python

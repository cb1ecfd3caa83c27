"""The engine's figures (`tests.bench.engine`), with DBOS of locks/bench.txt beside it in an environment of its own."""

import json
import subprocess
import sys
from typing import Any

from tests.bench import peers
from tests.bench.figures import Figure

SECONDS = 400


def run(quick: bool) -> list[Figure]:
    command = [sys.executable, "-m", "tests.bench.engine", "--peer", str(peers.environment() / "python")]
    measured = subprocess.run(command, cwd=peers.ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=SECONDS)
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

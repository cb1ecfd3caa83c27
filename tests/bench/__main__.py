"""`make bench`: runs the benches one after the other, prints a table, and writes bench-results/<date>.json."""

import argparse
import importlib
import json
import os
import platform
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.figures import Figure, Skipped

BENCHES = {  # the longest last: a run has an end
    "wizard_steps": "Wizard steps over HTTP, against the same SQL through bare psycopg",
    "trigger": "From the trigger's answer to the first step of the job",
    "readers": "One event to many readers of server-sent events",
    "scanning": "Scan of model files, against picklescan alone",
    "importing": "Import of a large file by URL, against download + sha256 + fsync",
    "objects": "A large file into a bucket and back, against MinIO's own client",
    "memory": "Memory of an idle process",
    "seeing": "What traces, metrics and log ids cost a request and a step",
    "proxy": "The gateway, against the worker itself",
    "lists": "Pages of lists, short and long",
    "engine_peer": "The engine's steps, against DBOS",
    "runner": "The workflow server, against the public one",
    "flows": "Executions of flows, against Prefect 3 with its server",
    "dapr_engine": "The engine for services, against the same by hand with Dapr Workflow",
    "clusters_deploy": "A deploy to pods, against the same manifests applied by hand",
    "clusters_nodes": "Registering a large cluster, against reading it by plain HTTP",
    "clusters_scale": "Many endpoints on a large cluster of fake nodes, against the same manifests applied by hand",
}
SECONDS = {True: 300, False: 1200}  # for all of a quick and of a whole run
RESULTS = Path(__file__).parents[2] / "bench-results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="within 5 minutes, and so less exact")
    parser.add_argument("only", nargs="*", help=f"of {', '.join(BENCHES)}")
    options = parser.parse_args()
    if unknown := set(options.only) - BENCHES.keys():
        parser.error(f"there is no bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    console = Console(width=None if sys.stdout.isatty() else 150)
    results: dict[str, list[Figure]] = {}
    failed = False
    signal.signal(signal.SIGALRM, _over)
    signal.alarm(SECONDS[options.quick])
    for name in options.only or BENCHES:
        began = time.monotonic()
        try:
            results[name] = importlib.import_module(f"tests.bench.{name}").run(options.quick)
        except OutOfTime:
            failed = True
            console.print(
                f"[red]The {SECONDS[options.quick]} s were over while {name} was being measured; the rest is left out."
            )
            break
        except Skipped as why:
            console.print(f"{name} is left out: {why}.")
            continue
        except Exception as error:  # the other benches are worth having
            failed = True
            console.print(f"[red]{name} could not be measured: {type(error).__name__}: {error}")
            continue
        console.print(_table(name, results[name], time.monotonic() - began))
    signal.alarm(0)
    _write(results, quick=options.quick)
    return 1 if failed else 0


class OutOfTime(BaseException):
    """The run has taken as long as it may."""


def _over(_number: int, _frame: object) -> None:
    raise OutOfTime


def _table(name: str, figures: list[Figure], seconds: float) -> Table:
    table = Table(title=f"{BENCHES[name]} ({seconds:.0f} s)", title_justify="left", width=148)
    for column in ("", "measured", "against", "ratio", "target", "met"):
        table.add_column(column, justify="left" if column in ("", "against", "target") else "right")
    for one in figures:
        against = "" if one.peer is None else f"{_number(one.peer)} {one.peer_name}"
        judged = "" if one.peer is None else f"{'+' if one.by == 'difference' else ''}{_number(one.judged)}"
        met = {True: "[green]yes", False: "[red]NO", None: ""}[one.met]
        label = f"{one.name} [dim]{one.note}" if one.note else one.name
        table.add_row(label, f"{_number(one.value)} {one.unit}", against, judged, one.target, met)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _write(results: dict[str, list[Figure]], *, quick: bool) -> None:
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    content = {
        "at": now.isoformat(),
        "quick": quick,
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "figures": {name: [one.as_json() for one in figures] for name, figures in results.items()},
    }
    path = RESULTS / f"{now:%Y-%m-%dT%H%M%SZ}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{os.cpu_count()} cores, shared by the service, its database and the load. Written to {path}.")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())

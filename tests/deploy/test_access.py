"""Who may call whom, by real sidecars with certificates of a real sentry, and the lists of deploy/dapr/access."""

import contextlib
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest

from tests.serving import Fault, Server, send
from tests.testbed.machine import need
from tests.testbed.processes import Folder, Processes
from tests.testbed.sentry import Sentry

SERVICES = ("app", "model", "cluster", "flow", "gateway")
# Of services/distributed: the ports that each serves, and to whom.
SERVED = {
    "app": {
        "jobs": {"model", "cluster", "flow"}, "app": {"model", "cluster", "flow"}, "observer": {"cluster"},
        "gateway": {"gateway"}, "flow": {"flow"},
    },
    "model": {"runs": {"app"}},
    "cluster": {"runs": {"app"}, "reach": {"app"}},
    "flow": {"runs": {"app"}},
    "gateway": {},
}  # fmt: skip
PORTS = sorted({port for ports in SERVED.values() for port in ports})


class Echo(Server):
    """A service that takes every call; what is refused is refused by sidecars."""

    def answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        request.rfile.read(int(request.headers.get("Content-Length", 0)))
        send(request, 200, b'"reached"', {"Content-Type": "application/json"})


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


@pytest.fixture(scope="module")
def sentry(echo: Echo) -> Iterator[Sentry]:
    need("dapr")
    folder = Folder("sentry")
    processes = Processes(folder.path)
    made = Sentry(processes)
    try:
        made.start()
        for service in SERVICES:
            made.sidecar(service, echo.port, token=made.token(service))
        for service in SERVICES:
            made.wait_ready(service)
        yield made
    finally:
        processes.stop_all()
        folder.close()


@pytest.mark.parametrize(
    ("caller", "callee"), [(caller, callee) for caller in SERVICES for callee in SERVICES if caller != callee]
)
def test_a_call_is_let_through_where_a_port_is_served_to_the_caller_and_nowhere_else(
    sentry: Sentry, caller: str, callee: str
) -> None:
    for port in PORTS:
        answer = sentry.call(caller, callee, f"internal/{port}/anything")
        if caller in SERVED[callee].get(port, set()):
            assert (answer.status_code, answer.text) == (200, '"reached"'), port
        else:
            assert answer.status_code == 403, (port, answer.text)
            assert "access control policy has denied access" in answer.json()["message"]


@pytest.mark.parametrize("path", ["", "healthz", "models", "internal", "internal/jobs/../models"])
def test_only_ports_are_reached(sentry: Sentry, path: str) -> None:
    assert sentry.call("model", "app", path).status_code == 403


def test_only_the_method_of_ports_is_let_through(sentry: Sentry) -> None:
    assert sentry.call("model", "app", "internal/jobs/begin", method="GET").status_code == 403
    assert sentry.call("model", "app", "internal/jobs/begin", method="POST").status_code == 200


@pytest.mark.parametrize("whose", [None, "gateway", "nobody's"])
def test_who_cannot_prove_to_be_a_service_gets_no_certificate(sentry: Sentry, echo: Echo, whose: str | None) -> None:
    token = whose and ("not.a.token" if whose == "nobody's" else sentry.token(whose))
    name = sentry.sidecar("app", echo.port, token=token, name=f"false-{whose}")
    log = sentry.processes.folder / f"{name}.log"
    refused = partial(_says, log, "error from sentry SignCertificate")
    with contextlib.closing(_Stopped(sentry, name)):
        sentry.processes.wait("sentry refused it", refused, seconds=60, servers=["sentry"])
        with pytest.raises(httpx.TransportError):
            sentry.call(name, "model", "internal/runs/start")


def test_a_sidecar_without_certificates_is_refused(sentry: Sentry, echo: Echo) -> None:
    name = sentry.sidecar("cluster", echo.port, token=None, name="bare", certificates=False)
    with contextlib.closing(_Stopped(sentry, name)):
        sentry.wait_ready(name)
        seen = len(echo.seen)
        answer = sentry.call(name, "app", "internal/jobs/begin")
        assert answer.status_code in (403, 500), answer.text
        assert "reached" not in answer.text
        assert len(echo.seen) == seen


class _Stopped:
    def __init__(self, sentry: Sentry, name: str) -> None:
        self._sentry, self._name = sentry, name

    def close(self) -> None:
        self._sentry.processes.kill(self._name)


def _says(log: Path, words: str) -> bool:
    return words in log.read_text(errors="replace")

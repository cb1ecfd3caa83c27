"""A real Dapr on this machine: placement, scheduler, and a sidecar for each process that asks for one.

All of it listens on 127.0.0.1. Components are those of `deploy/dapr`; sidecars find each other by a file.
"""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from shared.jobs.dapr.sidecar import SidecarAddress
from tests.testbed.build import program
from tests.testbed.machine import need
from tests.testbed.processes import Folder, Processes, free_ports
from tests.testbed.session import for_session

DEPLOY = Path(__file__).parents[2] / "deploy" / "dapr"
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Daprd:
    """A sidecar. `app_token` is what it sends to its service."""

    name: str  # of its process
    address: SidecarAddress
    app_port: int
    app_token: str = field(repr=False)
    metrics_port: int


class Dapr:
    """The control plane, and the sidecars that were asked for."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._binary = program("dapr").path
        self._placement, self._scheduler = free_ports(2)
        self._health: dict[str, int] = {}
        self._databases: set[str] = set()
        (processes.folder / "components").mkdir()
        for component in (DEPLOY / "components").glob("*.yaml"):
            text = component.read_text().replace("scopes: [model, cluster, flow]\n", "")  # our names have a prefix
            (processes.folder / "components" / component.name).write_text(text)
        shutil.copy(DEPLOY / "local" / "config.yaml", processes.folder)

    def start(self) -> None:
        for name, port in (("placement", self._placement), ("scheduler", self._scheduler)):
            health, raft_or_etcd, peer, metrics = free_ports(4)
            listen = ["--port", port, "--listen-address=127.0.0.1", "--healthz-port", health, "--metrics-port", metrics]
            listen += ["--healthz-listen-address=127.0.0.1", "--metrics-listen-address=127.0.0.1", "--log-level=warn"]
            if name == "placement":
                own = [f"--initial-cluster=dapr-placement-0=127.0.0.1:{raft_or_etcd}"]
            else:
                own = [
                    f"--etcd-client-port={raft_or_etcd}", f"--etcd-data-dir={self.processes.folder / 'scheduler'}",
                    f"--etcd-initial-cluster=dapr-scheduler-server-0=http://127.0.0.1:{peer}",
                    f"--override-broadcast-host-port=127.0.0.1:{port}",
                ]  # fmt: skip
            self.processes.start(name, [self._binary, name, *map(str, listen), *own])
            self._health[name] = health
        for name in self._health:
            self._wait_healthy(name)

    def restart(self, name: str) -> None:
        """Start placement or the scheduler again, after it was killed."""
        self.processes.restart(name)
        self._wait_healthy(name)

    def _wait_healthy(self, name: str) -> None:
        ready = partial(_answers, self._health[name], "healthz")
        self.processes.wait(f"{name} is healthy", ready, seconds=START_SECONDS, servers=[name])

    def sidecar(self, service: str, app_port: int, database_url: str, prefix: str, name: str | None = None) -> Daprd:
        """Start a sidecar for a replica of a service that listens, or will listen, on `app_port`.

        `prefix` begins its name: sidecars of other tests on this machine hear the same names.
        """
        http, grpc, internal, metrics, public = free_ports(5)
        token, app_token = secrets.token_hex(16), secrets.token_hex(16)
        daprd = Daprd(
            name or f"daprd-{prefix}{service}",
            SidecarAddress(http, grpc, token, prefix=prefix),
            app_port,
            app_token,
            metrics,
        )
        command: list[str | Path] = [
            self._binary, "daprd", f"--app-id={prefix}{service}", f"--app-port={app_port}", f"--dapr-http-port={http}",
            f"--dapr-grpc-port={grpc}", f"--dapr-internal-grpc-port={internal}", f"--metrics-port={metrics}",
            f"--dapr-public-port={public}", "--dapr-listen-addresses=127.0.0.1", "--metrics-listen-address=127.0.0.1",
            "--dapr-internal-grpc-listen-address=127.0.0.1", "--dapr-public-listen-address=127.0.0.1",
            f"--resources-path={self.processes.folder / 'components'}", f"--config={self.processes.folder / 'config.yaml'}",
            f"--placement-host-address=127.0.0.1:{self._placement}",
            f"--scheduler-host-address=127.0.0.1:{self._scheduler}", "--max-body-size=16Mi", "--log-level=warn",
            "--dapr-graceful-shutdown-seconds=1",
        ]  # fmt: skip
        environment = {
            "DAPR_API_TOKEN": token, "APP_API_TOKEN": app_token, "STEPWAY_DAPR_DATABASE_URL": database_url,
            "DAPR_HOST_IP": "127.0.0.1",
        }  # fmt: skip
        self.processes.start(daprd.name, command, environment)
        if database_url not in self._databases:  # two that make the tables of a new database would fail each other
            self.wait_ready(daprd)
            self._databases.add(database_url)
        return daprd

    def wait_ready(self, daprd: Daprd) -> None:
        """Until the sidecar has its components, and its service may call through it."""
        port = daprd.address.http_port
        ready = partial(_answers, port, "v1.0/healthz/outbound", daprd.address.token)
        self.processes.wait(f"{daprd.name} is ready", ready, seconds=START_SECONDS, servers=[daprd.name])


@contextlib.contextmanager
def running() -> Iterator[Dapr]:
    folder = Folder("dapr")
    processes = Processes(folder.path)
    try:
        dapr = Dapr(processes)
        dapr.start()
        yield dapr
    finally:
        processes.stop_all()
        folder.close()


def session_dapr(config: pytest.Config) -> Dapr:
    """The session's own control plane; skips the test where there is no Dapr."""
    need("dapr")
    return for_session(config, running)


def _answers(port: int, path: str, token: str = "") -> bool:
    try:
        with urlopen(
            Request(f"http://127.0.0.1:{port}/{path}", headers={"dapr-api-token": token}), timeout=2
        ) as answer:
            return bool(answer.status < 300)
    except (URLError, OSError):
        return False

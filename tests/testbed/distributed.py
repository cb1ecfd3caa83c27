"""Stepway as services on this machine: PostgreSQL, MinIO, Dapr, and as many replicas of each service as are wanted.

`python -m tests.testbed.distributed` (what `make up-distributed` runs) starts it all from the test bed's binaries, says where
it is, and stops it all at Ctrl-C. Everything is on 127.0.0.1; `front` stands in for an ingress.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import urlopen

import psycopg
from pydantic import SecretStr

from shared.rpc.identity import APP, service_key
from stepway.postgres.embedded import EmbeddedPostgres
from tests.testbed.dapr import Dapr, Daprd
from tests.testbed.minio import PASSWORD, USER, Minio
from tests.testbed.processes import Folder, Processes, free_ports

ROOT = Path(__file__).parents[2]
SERVICES = ("app", "model", "cluster", "flow", "gateway")
START_SECONDS = 120.0


@dataclass(slots=True)
class Replica:
    """One process of a service, and its sidecar."""

    name: str
    service: str
    daprd: Daprd
    port: int
    metrics_port: int
    environment: dict[str, str] = field(repr=False)


class Distributed:
    """`settings` (`STEPWAY_*` without the mark) are for all services. `replicas`: of each service, or of those that are named
    there; the others have one. `durable`: PostgreSQL keeps what a crash would lose.
    """

    def __init__(
        self, settings: Mapping[str, object], *, replicas: int | Mapping[str, int] = 1, durable: bool = False
    ) -> None:
        self.folder = Folder("services")
        self.processes = Processes(self.folder.path)
        self._settings = {f"STEPWAY_{name.upper()}": str(value) for name, value in settings.items()}
        self._prefix = f"s{secrets.token_hex(4)}-"
        self._secret = secrets.token_urlsafe(32)
        self._stack = contextlib.ExitStack()
        named = dict.fromkeys(SERVICES, replicas) if isinstance(replicas, int) else replicas
        self._counts = {service: named.get(service, 1) for service in SERVICES}
        self.replicas: dict[str, Replica] = {}
        self.postgres = EmbeddedPostgres(self.folder.path / "postgres", durable=durable)
        self.url = f"http://127.0.0.1:{free_ports(1)[0]}"  # of the front
        self.key = ""

    def start(self) -> "Distributed":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        self.database_url = self._stack.enter_context(_started(self.postgres))
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE dapr")
        self.dapr_url = urlunsplit(urlsplit(self.database_url)._replace(path="/dapr"))
        self.minio = self._stack.enter_context(contextlib.closing(Minio()))
        self.bucket = self.minio.bucket()
        dapr = Folder("dapr")
        self._stack.callback(dapr.close)
        plane = Processes(dapr.path)
        self._stack.callback(plane.stop_all)
        self.dapr = Dapr(plane)
        self.dapr.start()
        self._run("db", "make-key", str(self.folder.path / "encryption.key"))
        self._run("db", "upgrade")
        self.key = self._run("db", "admin-key").strip()
        for service, count in self._counts.items():
            for number in range(count):
                self.add(service, number)
        for name in list(self.replicas):
            self.wait_ready(name)
        self._start_front()

    def add(self, service: str, number: int) -> Replica:
        """Start one more replica, which is not waited for."""
        port, internal, metrics = free_ports(3)
        daprd = self.dapr.sidecar(service, internal, self.dapr_url, self._prefix, name=f"daprd-{service}-{number}")
        own = {
            "STEPWAY_PORT": str(port), "STEPWAY_INTERNAL_PORT": str(internal), "STEPWAY_METRICS_PORT": str(metrics),
            "STEPWAY_DATA_DIR": str(self.folder.path / f"{service}-{number}"), "STEPWAY_DAPR_PREFIX": self._prefix,
            "DAPR_HTTP_PORT": str(daprd.address.http_port), "DAPR_GRPC_PORT": str(daprd.address.grpc_port),
            "DAPR_API_TOKEN": daprd.address.token, "APP_API_TOKEN": daprd.app_token,
        }  # fmt: skip
        if service != APP:
            own["STEPWAY_SERVICE_KEY"] = service_key(SecretStr(self._secret), service)
        replica = Replica(f"{service}-{number}", service, daprd, port, metrics, self._environment(service) | own)
        self.replicas[replica.name] = replica
        self.processes.start(replica.name, [sys.executable, "-m", "stepway", "service", service], replica.environment)
        return replica

    def wait_ready(self, name: str) -> None:
        replica = self.replicas[name]
        self.processes.wait(
            f"{name} is ready", lambda: answers(f"http://127.0.0.1:{replica.metrics_port}/readyz"),
            seconds=START_SECONDS, servers=[name],
        )  # fmt: skip

    def _environment(self, service: str) -> dict[str, str]:
        shared = {
            "PYTHONPATH": str(ROOT), "STEPWAY_S3_ENDPOINT": self.minio.endpoint, "STEPWAY_S3_BUCKET": self.bucket,
            "STEPWAY_S3_ACCESS_KEY": USER, "STEPWAY_S3_SECRET_KEY": PASSWORD, "STEPWAY_LOG_FORMAT": "json",
            **self._settings,
        }  # fmt: skip
        if service == "gateway":
            shared = {name: value for name, value in shared.items() if not name.startswith("STEPWAY_S3_")}
        return shared | (self._of_the_app() if service == APP else {})

    def _of_the_app(self) -> dict[str, str]:
        return {
            "STEPWAY_GATEWAY_URL": self.url,
            "DATABASE_URL": self.database_url, "STEPWAY_KEY_FILE": str(self.folder.path / "encryption.key"),
            "STEPWAY_SERVICE_SECRET": self._secret,
        }  # fmt: skip

    def _start_front(self) -> None:
        places = {
            service: ",".join(f"127.0.0.1:{one.port}" for one in self.replicas.values() if one.service == service)
            for service in ("app", "gateway")
        }
        port = str(urlsplit(self.url).port)
        command = [sys.executable, "-m", "tests.testbed.front", port, places["app"], places["gateway"]]
        self.processes.start("front", command, {"PYTHONPATH": str(ROOT)})
        self.processes.wait("the front answers", lambda: answers(f"{self.url}/healthz"), seconds=START_SECONDS)

    def _run(self, *arguments: str) -> str:
        """A command of the app's, to its end; what it printed."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder.path), **self._environment(APP)}
        done = subprocess.run(
            [sys.executable, "-m", "stepway", *arguments], env=environment, cwd=self.folder.path, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"stepway {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def close(self) -> None:
        for name in self.replicas:  # all at once, for each takes a moment
            self.processes.signal(name, signal.SIGTERM)
        self.processes.stop_all()
        self._stack.close()
        self.folder.close()


@contextlib.contextmanager
def _started(postgres: EmbeddedPostgres) -> Iterator[str]:
    try:
        yield postgres.start()
    finally:
        postgres.stop()


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=3) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description="Run Stepway as services on this machine until Ctrl-C.")
    parser.add_argument("--replicas", type=int, default=1, help="of each service")
    parser.add_argument("--model-root", action="append", default=[], help="a folder from which models may be added")
    parser.add_argument("--ready-file", type=Path, help="written when all is ready: url and admin_key_file")
    given = parser.parse_args()
    settings: Mapping[str, object] = {
        "allow_loopback_clusters": True, "model_roots": ",".join(given.model_root) or "",
    }  # fmt: skip
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.closing(Distributed(settings, replicas=given.replicas, durable=True).start()) as running:
        key_file = running.folder.path / "admin.key"
        key_file.touch(mode=0o600)
        key_file.write_text(running.key + "\n")
        sys.stdout.write(f"Stepway is ready at {running.url}; the admin's key is in {key_file}; logs are beside it.\n")
        sys.stdout.flush()
        if given.ready_file is not None:
            ready = {"url": running.url, "admin_key_file": str(key_file), "pid": os.getpid()}
            given.ready_file.write_text(json.dumps(ready) + "\n")
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())

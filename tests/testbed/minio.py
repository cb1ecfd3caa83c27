"""A MinIO server for tests, with its data in a folder of its own.

Made once for a session as the fixture `minio`; a test that kills or restarts it, or wants TLS, makes a `Minio` of its own.
"""

import contextlib
import http.client
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import urllib3
from minio import Minio as Client
from minio.credentials.providers import StaticProvider
from minio.minioadmin import MinioAdmin

from shared.objects.s3_bucket import S3Place
from tests.testbed.build import program
from tests.testbed.machine import need
from tests.testbed.processes import Folder, Processes, free_ports
from tests.testbed.session import for_session

USER, PASSWORD = "stepway-root", "stepway-root-secret"
START_SECONDS = 60.0


class Minio:
    """One server on a free port of 127.0.0.1. With `certificates` (a folder with public.crt and private.key) by TLS."""

    def __init__(self, certificates: Path | None = None, ca: Path | None = None, region: str = "us-east-1") -> None:
        self._folder = Folder("minio")
        self.processes = Processes(self._folder.path)
        self._ca = ca
        self._certificates = certificates
        self._region = region
        self.port, console = free_ports(2)
        command: list[str | Path] = [
            program("minio").path, "server", "--quiet", "--address", f"127.0.0.1:{self.port}",
            "--console-address", f"127.0.0.1:{console}",
            "--certs-dir", certificates or self._folder.path / "certs", self._folder.path / "data",
        ]  # fmt: skip
        self._command = [
            "env",
            f"MINIO_ROOT_USER={USER}",
            f"MINIO_ROOT_PASSWORD={PASSWORD}",
            "MINIO_CI_CD=1",
            f"MINIO_SITE_REGION={region}",
            *command,
        ]
        try:
            self.processes.start("minio", self._command)
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def endpoint(self) -> str:
        return f"{'https' if self._certificates else 'http'}://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self._folder.path / "data"

    @property
    def client(self) -> Client:
        return Client(
            f"127.0.0.1:{self.port}", USER, PASSWORD, secure=bool(self._certificates), region=self._region,
            http_client=self._http(),
        )  # fmt: skip

    @property
    def admin(self) -> MinioAdmin:
        return MinioAdmin(
            endpoint=f"127.0.0.1:{self.port}", credentials=StaticProvider(USER, PASSWORD), secure=bool(self._certificates),
            http_client=self._http(),
        )  # fmt: skip

    def bucket(self) -> str:
        """A new one."""
        name = f"test-{uuid4().hex[:12]}"
        self.client.make_bucket(name)
        return name

    def place(self, bucket: str | None = None, prefix: str = "") -> S3Place:
        return S3Place(self.endpoint, bucket or self.bucket(), USER, PASSWORD, prefix=prefix, ca=self._ca)

    def kill(self) -> None:
        self.processes.kill("minio")

    def restart(self) -> None:
        """Start again what was killed, on the same port with the same data."""
        self.processes.restart("minio")
        self._wait()

    def hang(self) -> None:
        self.processes.signal("minio", signal.SIGSTOP)

    def go_on(self) -> None:
        self.processes.signal("minio", signal.SIGCONT)

    def close(self) -> None:
        self.processes.stop_all()
        self._folder.close()

    def _http(self) -> urllib3.PoolManager:
        ca = str(self._ca) if self._ca else None
        return urllib3.PoolManager(timeout=30.0, retries=False, cert_reqs="CERT_REQUIRED", ca_certs=ca)

    def _wait(self) -> None:
        self.processes.wait("MinIO answers", self._answers, seconds=START_SECONDS)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = (
                http.client.HTTPSConnection(
                    "127.0.0.1", self.port, timeout=2, context=ssl.create_default_context(cafile=self._ca)
                )
                if self._certificates
                else http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            )
            with contextlib.closing(connection):
                connection.request("GET", "/minio/health/cluster")
                return connection.getresponse().status == 200
        return False


@contextmanager
def _running() -> Iterator[Minio]:
    server = Minio()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def minio(request: pytest.FixtureRequest) -> Minio:
    """One server for all; each test takes a bucket of its own."""
    need("minio")
    return for_session(request.config, _running)

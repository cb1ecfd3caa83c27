"""A real sentry on this machine, and sidecars with certificates: what deploy/dapr/access and the chart rely on.

`tests.testbed.dapr` has sidecars without. Here each proves to sentry who it is by a token, as in the chart's mode `sidecars`.
"""

import base64
import json
import secrets
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import jwt
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.testbed.build import program
from tests.testbed.dapr import DEPLOY, START_SECONDS
from tests.testbed.processes import Processes, free_ports

DOMAIN, NAMESPACE = "cluster.local", "default"
ISSUER = Path(__file__).parents[2] / "charts" / "stepway" / "files" / "issuer.py"


class Sentry:
    """Started by `start`. `prefix` begins the names of its sidecars, in its access lists as well."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.prefix = f"t{secrets.token_hex(4)}-"
        self._binary = program("dapr").path
        self._key = secrets.token_bytes(64)
        self._folder = processes.folder
        self._port, self._health, self._metrics = free_ports(3)
        self.ports: dict[str, int] = {}  # of Dapr's HTTP API, by the sidecars' names
        self.internal: dict[str, int] = {}
        self.tokens: dict[str, str] = {}

    def start(self) -> None:
        given, to = self._folder / "given", self._folder / "issuer"
        given.mkdir()
        to.mkdir()
        self._make_authority(given)
        subprocess.run([sys.executable, "-I", ISSUER, given, to], check=True)
        plain = base64.urlsafe_b64encode(self._key).decode().rstrip("=")
        key = {"kty": "oct", "alg": "HS256", "use": "sig", "kid": "stepway", "k": plain}
        (self._folder / "jwks.json").write_text(json.dumps({"keys": [key]}))
        config = (DEPLOY / "sentry.yaml").read_text()
        (self._folder / "sentry.yaml").write_text(
            config.replace("/var/run/stepway/trust/jwks.json", str(self._folder / "jwks.json"))
        )
        self.processes.start("sentry", [
            self._binary, "sentry", "--mode=standalone", f"--port={self._port}", "--listen-address=127.0.0.1",
            f"--config={self._folder / 'sentry.yaml'}", f"--issuer-credentials={to}", f"--trust-domain={DOMAIN}",
            f"--healthz-port={self._health}", "--healthz-listen-address=127.0.0.1", f"--metrics-port={self._metrics}",
            "--metrics-listen-address=127.0.0.1",
        ], {"NAMESPACE": NAMESPACE})  # fmt: skip
        healthy = partial(_answers, f"http://127.0.0.1:{self._health}/healthz")
        self.processes.wait("sentry is healthy", healthy, seconds=START_SECONDS)

    def token(self, service: str) -> str:
        """With which a sidecar is `service` for sentry."""
        claims = {
            "sub": f"spiffe://public/ns/{NAMESPACE}/{self.prefix}{service}",
            "aud": [f"spiffe://{DOMAIN}/ns/{NAMESPACE}/dapr-sentry"],
        }
        return jwt.encode(claims, self._key, "HS256", headers={"kid": "stepway"})

    def sidecar(
        self, service: str, app_port: int, *, token: str | None, name: str | None = None, certificates: bool = True
    ) -> str:
        """Start one that says it is `service`; returns its name. It is not waited for."""
        name = name or service
        http, grpc, internal, metrics, public = free_ports(5)
        self.ports[name], self.internal[name] = http, internal
        self.tokens[name] = secrets.token_hex(16)
        environment = {"NAMESPACE": NAMESPACE, "DAPR_HOST_IP": "127.0.0.1", "DAPR_API_TOKEN": self.tokens[name]}
        command: list[str | Path] = [
            self._binary, "daprd", f"--app-id={self.prefix}{service}", f"--app-port={app_port}",
            f"--dapr-http-port={http}", f"--dapr-grpc-port={grpc}", f"--dapr-internal-grpc-port={internal}",
            f"--metrics-port={metrics}", f"--dapr-public-port={public}", "--dapr-listen-addresses=127.0.0.1",
            "--metrics-listen-address=127.0.0.1", "--dapr-internal-grpc-listen-address=127.0.0.1",
            "--dapr-public-listen-address=127.0.0.1", f"--config={self._access(service)}", "--log-level=info",
            "--dapr-graceful-shutdown-seconds=1",
        ]  # fmt: skip
        if certificates:
            command += [
                "--enable-mtls", f"--sentry-address=127.0.0.1:{self._port}", f"--control-plane-namespace={NAMESPACE}",
                f"--control-plane-trust-domain={DOMAIN}",
            ]  # fmt: skip
            environment["DAPR_TRUST_ANCHORS"] = (self._folder / "given" / "ca.crt").read_text()
            if token is not None:
                file = self._folder / f"{name}.token"
                file.write_text(token)
                environment["DAPR_SENTRY_TOKEN_FILE"] = str(file)
        self.processes.start(name, command, environment)
        return name

    def wait_ready(self, name: str) -> None:
        url = f"http://127.0.0.1:{self.ports[name]}/v1.0/healthz/outbound"
        ready = partial(_answers, url, self.tokens[name])
        self.processes.wait(f"{name} is ready", ready, seconds=START_SECONDS, servers=[name])

    def call(self, caller: str, callee: str, path: str, *, method: str = "POST") -> httpx.Response:
        """Through the sidecar `caller`."""
        url = f"http://127.0.0.1:{self.ports[caller]}/v1.0/invoke/{self.prefix}{callee}/method/{path}"
        headers = {"dapr-api-token": self.tokens[caller]}
        return httpx.request(method, url, json={}, headers=headers, trust_env=False, timeout=60)

    def _access(self, service: str) -> Path:
        """The access list of deploy/dapr, for names with our prefix, on a machine where sidecars find each other by mDNS."""
        document = yaml.safe_load((DEPLOY / "access" / f"{service}.yaml").read_text())
        for policy in document["spec"]["accessControl"].get("policies", []):
            policy["appId"] = f"{self.prefix}{policy['appId']}"
        document["spec"]["nameResolution"] = {"component": "mdns"}
        file = self._folder / f"{service}.yaml"
        file.write_text(yaml.safe_dump(document))
        return file

    def _make_authority(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name.from_rfc4514_string("CN=test authority")
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )  # fmt: skip
        (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.TraditionalOpenSSL
        (folder / "ca.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))


def _answers(url: str, token: str = "") -> bool:
    try:
        return httpx.get(url, headers={"dapr-api-token": token}, trust_env=False, timeout=2).is_success
    except httpx.TransportError:
        return False

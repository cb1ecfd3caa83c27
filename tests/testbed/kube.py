"""A real API server with its store, for tests: etcd and kube-apiserver, no nodes but those that a test registers.

Both come from one binary, `kube`, whose first argument picks the component; it is looked for in the user's cache
(`stepway/testbed/kube*`). Without it the tests skip and say so.
"""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.security.kubeconfig import Kubeconfig, KubeconfigPolicy, parse
from shared.security.kubeconfig_server import ServerPolicy
from tests.testbed.certificates import Authority, as_yaml, encoded, kubeconfig

ACCESS = Path(__file__).parents[2] / "deploy" / "cluster-access.yaml"
LOOPBACK = ServerPolicy(allow_loopback=True)
START_SECONDS = 30.0
_ADMIN_TOKEN = "admin-token-of-the-test-bed"


def binary() -> Path | None:
    """The newest `kube` of the cache that can be run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepway" / "testbed"
    found = [path for path in cache.glob("kube*") if path.is_file() and os.access(path, os.X_OK)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


@dataclass(frozen=True, slots=True)
class ApiServer:
    """A running API server. `admin` is an HTTP client with all rights; objects are given as kubectl takes them."""

    url: str
    authority: Authority
    admin: httpx.Client

    def apply(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        """Server-side apply of one object; `path` is the collection's."""
        response = self.admin.patch(
            f"{path}/{document['metadata']['name']}",
            params={"fieldManager": "test", "force": "true"},
            headers={"Content-Type": "application/apply-patch+yaml"},
            content=yaml.safe_dump(document),
        )
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found

    def apply_access(self) -> None:
        for document in yaml.safe_load_all(ACCESS.read_text()):
            self.apply(collection(document), document)

    def token(self, name: str = "stepway") -> str:
        """A token of a service account, as the token controller would put it into the account's Secret."""
        answer = self.admin.post(f"/api/v1/namespaces/stepway/serviceaccounts/{name}/token", json={"spec": {}})
        answer.raise_for_status()
        return str(answer.json()["status"]["token"])

    def add_node(self, name: str, *, status: dict[str, Any], **fields: Any) -> None:
        """A Node as a kubelet would register it; `fields` are labels and spec."""
        metadata = {"name": name, "labels": fields.get("labels", {})}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": fields.get("spec", {})}
        self.admin.post("/api/v1/nodes", json=node).raise_for_status()
        headers = {"Content-Type": "application/merge-patch+json"}
        self.admin.patch(f"/api/v1/nodes/{name}/status", headers=headers, json={"status": status}).raise_for_status()

    def kubeconfig(self, **user: Any) -> Kubeconfig:
        """Credentials as given, for this server."""
        ca = encoded(self.authority.pair.certificate)
        made = kubeconfig(cluster={"server": self.url, "certificate-authority-data": ca}, user={"token": None, **user})
        return parse(as_yaml(made), KubeconfigPolicy(addresses=LOOPBACK))


def collection(document: dict[str, Any]) -> str:
    """Where the API has objects like this one."""
    version, kind = document["apiVersion"], document["kind"].lower()
    plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    namespace = document["metadata"].get("namespace")
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """One API server for the session, with the access of deploy/cluster-access.yaml applied."""
    program = binary()
    if program is None:
        message = "no kube binary in the cache (stepway/testbed/kube*): no real API server to test against"
        pytest.skip(message)
    with running(program) as server:
        server.apply_access()
        yield server


@contextlib.contextmanager
def running(program: Path) -> Iterator[ApiServer]:
    directory = Path(tempfile.mkdtemp(prefix="stepway-kube-"))
    started: list[subprocess.Popen[bytes]] = []
    try:
        with contextlib.ExitStack() as stack:
            store, peer, port = _free_ports(3)
            authority = _write_keys(directory)
            started.append(_start(program, directory, "etcd", *_etcd(directory, store, peer)))
            started.append(_start(program, directory, "kube-apiserver", *_apiserver(directory, store, port)))
            url = f"https://127.0.0.1:{port}"
            admin = stack.enter_context(_admin(url, directory))
            _wait_ready(admin, started, directory)
            yield ApiServer(url, authority, admin)
    finally:
        for process in reversed(started):
            _stop(process)
        shutil.rmtree(directory, ignore_errors=True)


def _admin(url: str, directory: Path) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    headers = {"Authorization": f"Bearer {_ADMIN_TOKEN}"}
    return httpx.Client(base_url=url, verify=context, headers=headers, trust_env=False, timeout=10)


def _write_keys(directory: Path) -> Authority:
    authority = Authority.make("kube-ca")
    server = authority.issue("kube-apiserver", names=("127.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc"))
    accounts = rsa.generate_private_key(65537, 2048)
    files = {
        "ca.crt": authority.pair.certificate,
        "server.crt": server.certificate,
        "server.key": server.key,
        "accounts.key": accounts.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "tokens.csv": f'{_ADMIN_TOKEN},admin,admin,"system:masters"\n'.encode(),
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return authority


def _etcd(directory: Path, port: int, peer: int) -> list[str]:
    client, between = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    return [
        "--unsafe-no-fsync",
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={between}",
        f"--initial-advertise-peer-urls={between}",
        f"--initial-cluster=default={between}",
    ]


def _apiserver(directory: Path, store: int, port: int) -> list[str]:
    return [
        f"--etcd-servers=http://127.0.0.1:{store}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--secure-port={port}",
        f"--cert-dir={directory}",
        f"--tls-cert-file={directory / 'server.crt'}",
        f"--tls-private-key-file={directory / 'server.key'}",
        f"--client-ca-file={directory / 'ca.crt'}",
        f"--token-auth-file={directory / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        f"--service-account-key-file={directory / 'accounts.key'}",
        f"--service-account-signing-key-file={directory / 'accounts.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/16",
    ]


def _start(program: Path, directory: Path, component: str, *arguments: str) -> subprocess.Popen[bytes]:
    with (directory / f"{component}.log").open("wb") as log:
        return subprocess.Popen(
            [program, component, *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(directory)},
        )


def _wait_ready(admin: httpx.Client, started: list[subprocess.Popen[bytes]], directory: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        ended = [process for process in started if process.poll() is not None]
        if ended:
            break
        with contextlib.suppress(httpx.TransportError):
            found = admin.get("/readyz")
            if found.is_success and admin.get("/api/v1/namespaces/kube-system").is_success:
                return
        time.sleep(0.1)
    logs = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in directory.glob("*.log"))
    raise RuntimeError(f"the API server did not become ready\n{logs}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports

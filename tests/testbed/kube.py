"""A real control plane for tests: etcd, kube-apiserver and, when asked, the controllers and the scheduler.

All come from one binary, `kube`, whose first argument picks the component. Alone, as the fixture `api_server`, it has
no nodes but those that a test registers; `tests.testbed.kwok` adds fake nodes, `tests.testbed.cluster` a real one.
"""

import contextlib
import ipaddress
import ssl
from collections.abc import Iterator, Sequence
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
from tests.testbed.build import program
from tests.testbed.certificates import Authority, as_yaml, encoded, kubeconfig
from tests.testbed.machine import need
from tests.testbed.processes import Folder, Processes, free_ports
from tests.testbed.session import for_session

ACCESS = Path(__file__).parents[2] / "deploy" / "cluster-access.yaml"
LOOPBACK = ServerPolicy(allow_loopback=True)
START_SECONDS = 300.0  # on a machine that is busy with much else; alone it is a few
_ADMIN_TOKEN = "admin-token-of-the-test-bed"


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

    def apply_all(self, documents: str) -> None:
        """Server-side apply of the YAML documents, in their order."""
        for document in yaml.safe_load_all(documents):
            self.apply(collection(document), document)

    def apply_access(self) -> None:
        self.apply_all(ACCESS.read_text())

    def get(self, path: str, **params: str) -> dict[str, Any]:
        """What the API answers at this path. Raises httpx.HTTPStatusError."""
        response = self.admin.get(path, params=params)
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found

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

    def kubeconfig_file(self, **user: Any) -> bytes:
        """A kubeconfig with these credentials, else the administrator's."""
        ca = encoded(self.authority.pair.certificate)
        credentials = {"token": None, **user} if user else {"token": _ADMIN_TOKEN}
        return as_yaml(kubeconfig(cluster={"server": self.url, "certificate-authority-data": ca}, user=credentials))

    def kubeconfig(self, **user: Any) -> Kubeconfig:
        """Credentials as given, for this server."""
        return parse(self.kubeconfig_file(**user), KubeconfigPolicy(addresses=LOOPBACK))

    def access_kubeconfig(self) -> bytes:
        """The kubeconfig that an operator hands over: the service account of deploy/cluster-access.yaml."""
        return self.kubeconfig_file(token=self.token())


def collection(document: dict[str, Any]) -> str:
    """Where the API has objects like this one."""
    version, kind = document["apiVersion"], document["kind"].lower()
    plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    namespace = document["metadata"].get("namespace")
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


@pytest.fixture(scope="session")
def api_server(pytestconfig: pytest.Config) -> ApiServer:
    """One API server for the session, with the access of deploy/cluster-access.yaml applied."""
    need("kube")
    return for_session(pytestconfig, running)


@contextlib.contextmanager
def running() -> Iterator[ApiServer]:
    folder = Folder("kube")
    plane = ControlPlane(Processes(folder.path))
    try:
        plane.start()
        plane.api.apply_access()
        yield plane.api
    finally:
        plane.stop()
        folder.close()


class ControlPlane:
    """Started by `start`; its files are in the folder of `processes`, its ports are free ones unless given.

    `address` is where others reach the API server; on one that is not loopback, pods reach it as `kubernetes` too. A node
    whose kubelet has been silent for `node_grace` seconds is not ready. `flags` are more for the API server.
    """

    def __init__(
        self,
        processes: Processes,
        *,
        address: str = "127.0.0.1",
        ports: tuple[int, int, int] | None = None,
        services: str = "10.96.0.0/16",
        flags: Sequence[str] = (),
        node_grace: int = 8,
    ) -> None:
        self._processes, self._address, self._services = processes, address, services
        self._port, self._store, self._peer = ports or free_ports(3)
        self._flags, self._node_grace = flags, node_grace
        self.folder = processes.folder
        self.authority = Authority.make("kube-ca")
        self.api = ApiServer(f"https://{address}:{self._port}", self.authority, self._admin())
        self.admin_kubeconfig = self.folder / "admin.kubeconfig"

    def start(self, *, controllers: bool = False) -> None:
        """Returns when the API server is ready; controllers and scheduler follow. Raises StartError."""
        self._write_keys()
        self._run("etcd", *self._etcd_flags())
        self._run("kube-apiserver", *self._apiserver_flags(), *self._flags)
        self._processes.wait("the API server was ready", self.ready, seconds=START_SECONDS)
        if controllers:
            self.start_controllers()

    def start_controllers(self) -> None:
        common = (f"--kubeconfig={self.admin_kubeconfig}", "--leader-elect=false", "--secure-port=0")
        limits = ("--kube-api-qps=500", "--kube-api-burst=1000")
        self._run(
            "kube-controller-manager",
            *common,
            *limits,
            f"--root-ca-file={self.folder / 'ca.crt'}",
            f"--service-account-private-key-file={self.folder / 'accounts.key'}",
            "--node-monitor-period=1s",
            f"--node-monitor-grace-period={self._node_grace}s",
        )
        self._run("kube-scheduler", *common, *limits)

    def stop(self) -> None:
        self._processes.stop_all()
        self.api.admin.close()

    def ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            admin = self.api.admin
            return admin.get("/readyz").is_success and admin.get("/api/v1/namespaces/kube-system").is_success
        return False

    def client_kubeconfig(self, name: str, group: str) -> bytes:
        """For a component that is known by a certificate."""
        pair = self.authority.issue(name, organization=group)
        credentials = {"client-certificate-data": encoded(pair.certificate), "client-key-data": encoded(pair.key)}
        return self.api.kubeconfig_file(**credentials)

    def _run(self, component: str, *flags: str) -> None:
        self._processes.start(component, [program("kube").path, component, *flags])

    def _admin(self) -> httpx.Client:
        context = ssl.create_default_context(cadata=self.authority.pair.certificate.decode())
        headers = {"Authorization": f"Bearer {_ADMIN_TOKEN}"}
        return httpx.Client(base_url=self.api_url, verify=context, headers=headers, trust_env=False, timeout=10)

    @property
    def api_url(self) -> str:
        return f"https://{self._address}:{self._port}"

    def _write_keys(self) -> None:
        first = next(ipaddress.ip_network(self._services).hosts())
        inside = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
        names = {"127.0.0.1", self._address, str(first), "localhost", *inside}
        server = self.authority.issue("kube-apiserver", names=tuple(sorted(names)))
        client = self.authority.issue("kube-apiserver-kubelet-client", organization="system:masters")
        accounts = rsa.generate_private_key(65537, 2048)
        files = {
            "ca.crt": self.authority.pair.certificate,
            "server.crt": server.certificate,
            "server.key": server.key,
            "kubelet-client.crt": client.certificate,
            "kubelet-client.key": client.key,
            "accounts.key": accounts.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "tokens.csv": f'{_ADMIN_TOKEN},admin,admin,"system:masters"\n'.encode(),
            "admin.kubeconfig": self.api.kubeconfig_file(),
        }
        for name, content in files.items():
            (self.folder / name).write_bytes(content)

    def _etcd_flags(self) -> list[str]:
        client, between = f"http://127.0.0.1:{self._store}", f"http://127.0.0.1:{self._peer}"
        return [
            "--unsafe-no-fsync",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={between}",
            f"--initial-advertise-peer-urls={between}",
            f"--initial-cluster=default={between}",
        ]

    def _apiserver_flags(self) -> list[str]:
        loopback = ipaddress.ip_address(self._address).is_loopback
        return [
            f"--etcd-servers=http://127.0.0.1:{self._store}",
            f"--bind-address={self._address if loopback else '0.0.0.0'}",
            f"--advertise-address={self._address}",
            f"--endpoint-reconciler-type={'none' if loopback else 'lease'}",  # a loopback address is no endpoint
            f"--secure-port={self._port}",
            f"--cert-dir={self.folder}",
            f"--tls-cert-file={self.folder / 'server.crt'}",
            f"--tls-private-key-file={self.folder / 'server.key'}",
            f"--client-ca-file={self.folder / 'ca.crt'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            f"--service-account-key-file={self.folder / 'accounts.key'}",
            f"--service-account-signing-key-file={self.folder / 'accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={self._services}",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={self.folder / 'kubelet-client.crt'}",
            f"--kubelet-client-key={self.folder / 'kubelet-client.key'}",
        ]

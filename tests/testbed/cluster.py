"""A real Kubernetes of one node that runs pods, for tests: `with Cluster() as cluster`, or the fixture `cluster`.

Everything runs in a `Space`: the control plane of `tests.testbed.kube`, containerd, kubelet, kube-proxy, CoreDNS and
`tests.testbed.provisioner`, so clusters stand side by side and nothing outlives one, not even after SIGKILL. The
machine reaches the API server, pods and Services by their addresses; pods reach the machine at `Cluster.host`. Nothing
reaches the internet: an image that was not loaded cannot be pulled, and fails at once.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest
import yaml

from tests.testbed import images, oci
from tests.testbed.build import program
from tests.testbed.kube import ApiServer, ControlPlane
from tests.testbed.machine import need
from tests.testbed.processes import StartError
from tests.testbed.session import for_session
from tests.testbed.space import SlotHolder, Space, reap

NODE = "node-1"
STORAGE_CLASS = "standard"
START_SECONDS = 300.0  # on a machine that is busy with much else; alone it is a few
_PORTS = (6443, 2379, 2380)
_HEALTH_PORT = 10248  # the kubelet's
_PROVISIONER = Path(__file__).with_name("provisioner.py")


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> "Cluster":
    """One cluster for the session, with the access of deploy/cluster-access.yaml applied. Tests use own namespaces
    or clean up in `stepway`; one that breaks the cluster makes its own by `with Cluster()`. The image `python` is loaded.
    """
    need("kube", "coredns", pods=True, images=("python",))
    return for_session(pytestconfig, _with_access)


@contextlib.contextmanager
def _with_access() -> "Iterator[Cluster]":
    with Cluster() as cluster:
        cluster.api.apply_access()
        cluster.load("python")
        yield cluster


class Cluster:
    """Started on entry, gone on exit. Servers are named in `SERVERS`; `space` stops, kills and pauses them."""

    SERVERS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "containerd", "kubelet",
               "kube-proxy", "coredns", "provisioner")  # fmt: skip

    def __init__(self) -> None:
        reap()
        pause = images.archive("pause")
        self._pause = pause
        self._holder = SlotHolder()
        self.slot = self._holder.slot
        self.space = Space(self.slot)
        self.plane = ControlPlane(self.space, address=self.slot.node, ports=_PORTS, services=self.slot.services)
        self._loaded: set[str] = set()

    @property
    def api(self) -> ApiServer:
        return self.plane.api

    @property
    def host(self) -> str:
        """The machine's address for pods: a server that they shall reach listens there."""
        return self.slot.host

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process and remove every trace. Safe to call twice."""
        self.api.admin.close()
        self.space.close()
        self._holder.close()

    def load(self, *names: str) -> None:
        """Make images of `tests.testbed.images` known to the node, by name without repository and tag."""
        for name in names:
            if name not in self._loaded:
                self._import(images.archive(name))
                self._loaded.add(name)

    def restart(self, *names: str) -> None:
        """Start again servers that were killed or stopped; returns when they serve. Raises StartError."""
        for name in sorted(names, key=self.SERVERS.index):
            self.space.restart(name)
            self._wait_serving(name)

    def restart_api_server(self) -> None:
        """Start it again after it was killed, and anew the servers that follow it: by themselves they would look again after
        up to a minute, the later the more often it has gone.
        """
        followers = ("kube-controller-manager", "kube-scheduler", "kubelet")
        self.restart("kube-apiserver")
        for name in followers:
            self.space.kill(name)
        self.restart(*followers)

    def wait(self, what: str, ready: Callable[[], Any], *, seconds: float = 30.0) -> Any:
        """The first true answer of `ready`. Raises TimeoutError with events and logs."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := ready():
                return found
            time.sleep(0.05)
        raise TimeoutError(f"not within {seconds:g} seconds: {what}\n{self.events()}\n{self.space.logs()}")

    def events(self) -> str:
        """What the cluster has to say lately, one line each."""
        items = self.api.get("/api/v1/events")["items"][-30:]
        return "\n".join(f"{item['involvedObject'].get('name')}: {item.get('message')}" for item in items)

    def pods(self, namespace: str, labels: str) -> list[dict[str, Any]]:
        found = self.api.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=labels)
        return list(found["items"])

    def ready_pods(self, namespace: str, labels: str) -> list[dict[str, Any]]:
        """Those that are ready and not being deleted."""
        return [
            pod for pod in self.pods(namespace, labels) if _is_ready(pod) and "deletionTimestamp" not in pod["metadata"]
        ]

    def node_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return _is_ready(self.api.get(f"/api/v1/nodes/{NODE}"))
        return False

    def _start(self) -> None:
        folder = self.slot.folder
        (folder / "resolv.conf").write_text(f"nameserver {self.slot.node}\noptions timeout:1 attempts:1\n")
        self.space.open()
        self._start_containerd(folder)
        self.plane.start(controllers=True)
        self._wait_serving("containerd")
        self._start_kubelet(folder)
        self._start_network(folder)
        self._start_storage(folder)
        self._import(self._pause)
        self._wait_serving("kubelet")
        self.space.wait("the node was ready", self.node_ready, seconds=START_SECONDS)

    def _wait_serving(self, name: str) -> None:
        ready = {
            "kube-apiserver": self.plane.ready,
            "containerd": self._containerd_ready,
            "kubelet": self._kubelet_ready,
        }
        if name in ready:
            own = () if name == "kubelet" else (name,)
            self.space.wait(f"{name} served", ready[name], seconds=START_SECONDS, servers=own)

    def _start_containerd(self, folder: Path) -> None:
        (folder / "containerd.toml").write_text(_CONTAINERD.format(sandbox=images.reference("pause"), folder=folder))
        (folder / "cni").mkdir()
        (folder / "cni" / "10-pods.conflist").write_text(json.dumps(_cni(self.slot.pods)))
        self.space.start("containerd", ["containerd", f"--config={folder / 'containerd.toml'}"])

    def _containerd_ready(self) -> bool:
        with contextlib.suppress(StartError):
            self.space.run(["ctr", "version"])
            return True
        return False

    def _kubelet_ready(self) -> bool:
        if "kubelet" in self.space.ended():  # it gives up on a containerd that has just begun; init systems try again
            self.space.restart("kubelet")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://{self.slot.node}:{_HEALTH_PORT}/healthz", trust_env=False, timeout=1).is_success
        return False

    def _start_kubelet(self, folder: Path) -> None:
        (folder / "kubelet.kubeconfig").write_bytes(self.plane.client_kubeconfig(f"system:node:{NODE}", "system:nodes"))
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(folder / "ca.crt")},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.slot.name}",
            "clusterDNS": [self.slot.node],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "failCgroupV1": False,
            "failSwapOn": False,
            "healthzBindAddress": self.slot.node,
            "healthzPort": _HEALTH_PORT,
            "imageGCHighThresholdPercent": 100,
            # the node's silence and return are seen within seconds
            "nodeLeaseDurationSeconds": 4,
            "nodeStatusUpdateFrequency": "1s",
            "resolvConf": str(folder / "resolv.conf"),
        }
        (folder / "kubelet.yaml").write_text(yaml.safe_dump(config))
        flags = (
            f"--config={folder / 'kubelet.yaml'}",
            f"--kubeconfig={folder / 'kubelet.kubeconfig'}",
            f"--hostname-override={NODE}",
            f"--node-ip={self.slot.node}",
        )
        self.space.start("kubelet", [program("kube").path, "kubelet", *flags])

    def _start_network(self, folder: Path) -> None:
        """kube-proxy for Services, CoreDNS for names: it listens at the node's address, where pods ask."""
        zero = "0s"  # leaves the machine's connection tracking as it is
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self.plane.admin_kubeconfig)},
            "clusterCIDR": self.slot.pods,
            "conntrack": {
                "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": zero, "tcpCloseWaitTimeout": zero,
            },
            "hostnameOverride": NODE,
            "iptables": {"minSyncPeriod": "100ms"},
            "mode": "iptables",
        }  # fmt: skip
        (folder / "proxy.yaml").write_text(yaml.safe_dump(config))
        self.space.start("kube-proxy", [program("kube").path, "kube-proxy", f"--config={folder / 'proxy.yaml'}"])
        (folder / "Corefile").write_text(_COREFILE.format(node=self.slot.node, kubeconfig=self.plane.admin_kubeconfig))
        self.space.start("coredns", [program("coredns").path, "-conf", folder / "Corefile"])

    def _start_storage(self, folder: Path) -> None:
        volumes = folder / "volumes"
        volumes.mkdir()
        arguments = [self.plane.admin_kubeconfig, volumes]
        self.space.start("provisioner", [sys.executable, "-I", _PROVISIONER, *arguments])
        for name, mode in ((STORAGE_CLASS, "Immediate"), (f"{STORAGE_CLASS}-wait", "WaitForFirstConsumer")):
            default = {"storageclass.kubernetes.io/is-default-class": str(name == STORAGE_CLASS).lower()}
            self.api.apply(
                "/apis/storage.k8s.io/v1/storageclasses",
                {
                    "apiVersion": "storage.k8s.io/v1",
                    "kind": "StorageClass",
                    "metadata": {"name": name, "annotations": default},
                    "provisioner": "testbed.stepway/host-path",
                    "volumeBindingMode": mode,
                },
            )

    def _import(self, archive: oci.Archive) -> None:
        with archive.stream() as stream:
            self.space.run(["ctr", "--namespace=k8s.io", "images", "import", "-"], stdin=stream)


def _is_ready(thing: dict[str, Any]) -> bool:
    conditions = thing.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _cni(pods: str) -> dict[str, Any]:
    addresses = {"type": "host-local", "ranges": [[{"subnet": pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]}


_CONTAINERD = """\
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{sandbox}"
# where the machine itself may not lower the scores of its processes, no sandbox would start without this
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""

_COREFILE = """\
cluster.local:53 in-addr.arpa:53 {{
    bind {node}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
    }}
}}
.:53 {{
    bind {node}
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""

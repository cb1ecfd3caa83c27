"""The chart, installed into the test cluster with all that it needs, and asked through a front as its ingress would be."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from kubernetes import client
from kubernetes.config import load_kube_config_from_dict
from kubernetes.stream import stream

from tests.charts.helm import BUNDLED, CHART, helm
from tests.e2e.instance import ROOT, Stepway, until
from tests.testbed.cluster import Cluster
from tests.testbed.processes import Folder, Processes, free_ports

RELEASE, NAMESPACE = "stepway", "chart"
IMAGES = ("stepway", "dapr", "postgres", "minio")
SERVICES = ("app", "model", "cluster", "flow", "gateway")
START_SECONDS = 420.0
_OF = f"app.kubernetes.io/instance={RELEASE}"
_NOBODY = 65534  # initdb wants a user that has a name in the image
_LITTLE = {"requests": {"cpu": "10m", "memory": "64Mi"}}
_DAPR = "stepway-testbed/dapr:1"

Json = dict[str, Any]


def values(**settings: object) -> Json:
    """One replica of each, of the images of the test bed, with little asked of the node."""
    servers = {
        name: {"image": _DAPR, "command": ["/usr/local/bin/dapr", name]}
        for name in ("placement", "scheduler", "sentry")
    }
    database, objects = dict(BUNDLED["database"]["bundled"]), dict(BUNDLED["objects"]["bundled"])
    database |= {"image": "stepway-testbed/postgres:1", "runAsUser": _NOBODY, "resources": _LITTLE}
    objects |= {"image": "stepway-testbed/minio:1", "resources": _LITTLE}
    return {
        "image": {"repository": "stepway-testbed/stepway", "tag": "1", "pullPolicy": "Never"},
        "dapr": {
            "mode": "sidecars", "image": _DAPR, "command": ["/usr/local/bin/dapr", "daprd"], **servers,
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        },
        "database": {"bundled": database}, "objects": {"bundled": objects}, "keepOnUninstall": False,
        **{name: {"replicas": 1, "resources": _LITTLE, "scratch": {"size": "2Gi"}} for name in SERVICES},
        "upgrade": {"resources": _LITTLE}, "settings": settings,
    }  # fmt: skip


class Installed(Stepway):
    """`url` is that of a front before its Services; `stepway`'s own process and files are not there."""

    def __init__(self, cluster: Cluster, folder: Path, given: Mapping[str, Any]) -> None:
        super().__init__(folder)
        self.cluster = cluster
        self.values = dict(given)
        self.processes_of_ours = Processes(folder)
        self._kubeconfig = folder / "kubeconfig.yaml"
        self._kubeconfig.write_bytes(cluster.api.kubeconfig_file())

    def install(self) -> "Installed":
        restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.cluster.api.apply(
            "/api/v1/namespaces",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": restricted}},
        )
        self.helm("install", RELEASE, CHART, "--timeout", "10m", values=self.values)
        self.wait_available()
        self.start_front()
        self.key = self.command_in("app", "db", "admin-key").strip()
        return self

    def upgrade(self, changed: Mapping[str, Any], *arguments: str) -> None:
        """To other values, waiting until the old pods have gone."""
        self.values |= changed
        self.helm("upgrade", RELEASE, CHART, "--timeout", "10m", "--wait", *arguments, values=self.values)

    def uninstall(self) -> None:
        self.helm("uninstall", RELEASE, "--wait", "--timeout", "5m")

    def helm(self, *arguments: str | Path, **options: Any) -> str:
        return helm(*arguments, "--namespace", NAMESPACE, kubeconfig=self._kubeconfig, **options)

    def wait_available(self) -> None:
        self.cluster.wait("every pod of the release is ready", self._all_ready, seconds=START_SECONDS)

    def _all_ready(self) -> bool:
        root = f"/apis/apps/v1/namespaces/{NAMESPACE}"
        for kind in ("deployments", "statefulsets"):
            for one in self.cluster.api.get(f"{root}/{kind}", labelSelector=_OF)["items"]:
                status = one["status"]
                counts = {status.get(name, 0) for name in ("replicas", "readyReplicas", "updatedReplicas")}
                if (
                    counts != {one["spec"]["replicas"]}
                    or status.get("observedGeneration") != one["metadata"]["generation"]
                ):
                    return False
        return True

    def pods(self, component: str) -> list[Json]:
        return self.cluster.ready_pods(NAMESPACE, f"{_OF},app.kubernetes.io/component={component}")

    def probe(self, component: str, path: str) -> list[httpx.Response]:
        """What each pod of a service answers on its port for probes."""
        addresses = [pod["status"]["podIP"] for pod in self.pods(component)]
        return [httpx.get(f"http://{address}:9464{path}", trust_env=False, timeout=10) for address in addresses]

    def service_address(self, name: str) -> str:
        found = self.cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/services/{RELEASE}-{name}")
        return str(found["spec"]["clusterIP"])

    def start_front(self) -> None:
        (port,) = free_ports(1)
        places = [f"{self.service_address(name)}:80" for name in ("app", "gateway")]
        command = [sys.executable, "-m", "tests.testbed.front", str(port), *places]
        self.processes_of_ours.start("front", command, {"PYTHONPATH": str(ROOT)})
        self.url = f"http://127.0.0.1:{port}"
        until(self._answers, what="the front")

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/healthz", trust_env=False, timeout=5).is_success
        return False

    def command_in(self, component: str, *arguments: str, container: str | None = None) -> str:
        """`stepway …` in a pod of a service, as `kubectl exec` does; what it printed."""
        return self.execute(component, ["python3", "-m", "stepway", *arguments], container=container)

    def execute(self, component: str, command: list[str], *, container: str | None = None) -> str:
        core = client.CoreV1Api(self._client())
        given: str = stream(
            core.connect_get_namespaced_pod_exec, self.pods(component)[0]["metadata"]["name"], NAMESPACE,
            container=container or component, command=command, stdout=True, stderr=True,
        )  # fmt: skip
        return given

    def _client(self) -> client.ApiClient:
        configuration = client.Configuration()
        given = yaml.safe_load(self._kubeconfig.read_text())
        load_kube_config_from_dict(given, client_configuration=configuration)  # type: ignore[no-untyped-call]  # its own
        return client.ApiClient(configuration)

    def objects(self) -> list[str]:
        """All that bears the release's label, of every kind that the chart makes, and its claims."""
        found = []
        for root, plurals in {
            "api/v1": ("pods", "services", "secrets", "configmaps", "persistentvolumeclaims"),
            "apis/apps/v1": ("deployments", "statefulsets", "replicasets"), "apis/batch/v1": ("jobs",),
            "apis/policy/v1": ("poddisruptionbudgets",), "apis/networking.k8s.io/v1": ("networkpolicies", "ingresses"),
        }.items():  # fmt: skip
            for plural in plurals:
                items = self.cluster.api.get(f"/{root}/namespaces/{NAMESPACE}/{plural}", labelSelector=_OF)["items"]
                found += [f"{plural}/{one['metadata']['name']}" for one in items]
        return found

    def close(self) -> None:
        self.processes_of_ours.stop_all()


@contextmanager
def installed(cluster: Cluster, **settings: object) -> Iterator[Installed]:
    """Within the block; the namespace goes after it."""
    cluster.load(*IMAGES)
    folder = Folder("chart")
    made = Installed(cluster, folder.path, values(**settings))
    try:
        yield made.install()
    finally:
        made.close()
        folder.close()

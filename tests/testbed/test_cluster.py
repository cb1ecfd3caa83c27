"""The one-node cluster: pods, Services, names, claims, and what clients do through the API server."""

import contextlib
import signal
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import kubernetes
import pytest
import yaml
from kubernetes.stream import portforward, stream

from tests.testbed import images
from tests.testbed.cluster import NODE, Cluster
from tests.testbed.machine import need

SPACE = "testbed"
PORT = 8080
IMAGE = "stepway-testbed/python:1"
LOCKED_DOWN = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
}
SERVE = textwrap.dedent("""
    import http.server, os, signal, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = os.uname().nodename.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *arguments):
            pass
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    print("listening", flush=True)
    http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
""")


def container(image: str = IMAGE, **fields: Any) -> dict[str, Any]:
    return {"name": "main", "image": image, "securityContext": LOCKED_DOWN, **fields}


def deployment(name: str, replicas: int, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    labels = {"app": name}
    pod = {"containers": list(containers), "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": SPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod | spec},
        },
    }


def service(name: str, port: int = PORT) -> dict[str, Any]:
    ports = [{"port": 80, "targetPort": port}]
    spec = {"type": "NodePort", "selector": {"app": name}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SPACE}, "spec": spec}


def apply(cluster: Cluster, *documents: dict[str, Any]) -> None:
    cluster.api.apply_all(yaml.safe_dump_all(documents))


@pytest.fixture(scope="module")
def web(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with two web servers behind a Service in a namespace of its own."""
    apply(cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    probe = {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1}
    server = container(command=["python3", "-c", SERVE], readinessProbe=probe, livenessProbe=probe)
    apply(cluster, deployment("web", 2, server), service("web"))
    cluster.wait("two pods were ready", lambda: len(cluster.ready_pods(SPACE, "app=web")) == 2)
    cluster.wait("the Service answered", lambda: answers(f"http://{service_address(cluster, 'web')}"))
    yield cluster
    cluster.api.admin.delete(f"/api/v1/namespaces/{SPACE}").raise_for_status()


@pytest.fixture(scope="module")
def core(web: Cluster) -> kubernetes.client.CoreV1Api:
    """Kubernetes' own client, for what needs more than HTTP."""
    return core_api(web.api.kubeconfig_file())


def core_api(kubeconfig: bytes) -> kubernetes.client.CoreV1Api:
    configuration = kubernetes.client.Configuration()
    loader: Any = kubernetes.config.load_kube_config_from_dict  # has no types
    loader(yaml.safe_load(kubeconfig), client_configuration=configuration)
    return kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(configuration))


def pod_names(cluster: Cluster) -> set[str]:
    return {pod["metadata"]["name"] for pod in cluster.ready_pods(SPACE, "app=web")}


def execute(core: kubernetes.client.CoreV1Api, pod: str, program: str) -> str:
    """What a Python program prints in a pod."""
    call = core.connect_get_namespaced_pod_exec
    command = ["python3", "-c", program]
    return str(stream(call, pod, SPACE, command=command, stdout=True, stderr=True, stdin=False, tty=False)).strip()


def fetch(url: str) -> str:
    return httpx.get(url, trust_env=False, timeout=5).text


def answers(url: str) -> bool:
    """Whether kube-proxy has come to it: a Service has no rules for some milliseconds after its pods are ready."""
    with contextlib.suppress(httpx.TransportError):
        return bool(fetch(url))
    return False


def service_address(cluster: Cluster, name: str) -> str:
    return str(cluster.api.get(f"/api/v1/namespaces/{SPACE}/services/{name}")["spec"]["clusterIP"])


def test_a_service_answers_from_the_machine_by_its_address_and_by_the_nodes_port(web: Cluster) -> None:
    found = web.api.get(f"/api/v1/namespaces/{SPACE}/services/web")["spec"]
    by_address = {fetch(f"http://{found['clusterIP']}") for _ in range(40)}
    by_node = {fetch(f"http://{web.slot.node}:{found['ports'][0]['nodePort']}") for _ in range(40)}
    assert by_address == by_node == pod_names(web)


def test_a_service_answers_from_a_pod_by_name(web: Cluster, core: kubernetes.client.CoreV1Api) -> None:
    pod = min(pod_names(web))
    ask = "import urllib.request as u; print(*{u.urlopen('http://web').read().decode() for _ in range(40)})"
    assert set(execute(core, pod, ask).split()) == pod_names(web)


def test_a_pod_reaches_the_api_server_by_name_and_the_machine(web: Cluster, core: kubernetes.client.CoreV1Api) -> None:
    pod = min(pod_names(web))
    ask = "import ssl, urllib.request as u; print(u.urlopen('https://kubernetes.default/version', context={}).status)"
    trusting = f"ssl.create_default_context(cadata={web.api.authority.pair.certificate.decode()!r})"
    assert execute(core, pod, ask.format(trusting)) == "200"
    with machine_server(web.host) as url:
        assert execute(core, pod, f"import urllib.request as u; print(u.urlopen({url!r}).read().decode())") == "machine"


@contextlib.contextmanager
def machine_server(address: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"machine")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer((address, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://{address}:{server.server_port}"
        server.shutdown()
        thread.join()


def test_logs_and_the_pod_proxy_and_port_forward_work_through_the_api_server(
    web: Cluster, core: kubernetes.client.CoreV1Api
) -> None:
    pod = min(pod_names(web))
    assert core.read_namespaced_pod_log(pod, SPACE) == "listening\n"
    proxied = web.api.admin.get(f"/api/v1/namespaces/{SPACE}/pods/{pod}:{PORT}/proxy/")
    assert (proxied.status_code, proxied.text) == (200, pod)
    forwarded = portforward(core.connect_get_namespaced_pod_portforward, pod, SPACE, ports=str(PORT))
    connection = forwarded.socket(PORT)
    connection.settimeout(10)
    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.endswith(pod.encode())


@pytest.mark.parametrize("storage", ["standard", "standard-wait"])
def test_a_claim_is_bound_and_its_volume_written_by_a_pod_without_rights_and_gone_with_it(
    web: Cluster, storage: str
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": storage, "namespace": SPACE},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": storage,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": storage}}]
    write = container(
        command=["python3", "-c", "open('/data/file', 'w').write('kept')"],
        volumeMounts=[{"name": "data", "mountPath": "/data"}],
    )
    spec = {"containers": [write], "volumes": volumes, "restartPolicy": "Never"}
    metadata = {"name": f"writes-{storage}", "namespace": SPACE, "labels": {"writes": storage}}
    apply(web, claim, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    web.wait("the pod had written", lambda: web.pods(SPACE, f"writes={storage}")[0]["status"]["phase"] == "Succeeded")
    volume = web.api.get(f"/api/v1/namespaces/{SPACE}/persistentvolumeclaims/{storage}")["spec"]["volumeName"]
    folder = web.slot.folder / "volumes" / volume
    assert (folder / "file").read_text() == "kept"

    web.api.admin.delete(f"/api/v1/namespaces/{SPACE}/pods/{metadata['name']}").raise_for_status()
    web.api.admin.delete(f"/api/v1/namespaces/{SPACE}/persistentvolumeclaims/{storage}").raise_for_status()
    web.wait("the volume was gone", lambda: web.api.admin.get(f"/api/v1/persistentvolumes/{volume}").status_code == 404)
    assert not folder.exists()


def test_an_image_that_nobody_loaded_is_refused_at_once(web: Cluster) -> None:
    apply(web, deployment("absent", 1, container("registry.example/absent:1")))

    def reason() -> Any:
        states = [status["state"] for pod in web.pods(SPACE, "app=absent") for status in statuses(pod)]
        return next((state["waiting"]["reason"] for state in states if "waiting" in state), None)

    web.wait("the pull failed", lambda: reason() in ("ErrImagePull", "ImagePullBackOff"), seconds=10)


def statuses(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return list(pod["status"].get("containerStatuses", []))


def test_a_worker_of_llama_cpp_answers_a_chat_from_a_pod(web: Cluster) -> None:
    need(images=("smollm2",))
    web.load("smollm2")
    arguments = {"model": images.MODEL, "name": "smollm2", "host": "0.0.0.0", "port": PORT, "context": 2048,
                 "parallel": 1, "batch": 512, "threads": 2}  # fmt: skip
    probe = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 1, "failureThreshold": 60}
    worker = container(
        "stepway-testbed/smollm2:1",
        args=[f"--{name}={value}" for name, value in arguments.items()],
        startupProbe=probe,
        volumeMounts=[{"name": "tmp", "mountPath": "/tmp"}],
    )
    apply(web, deployment("chat", 1, worker, volumes=[{"name": "tmp", "emptyDir": {}}]), service("chat"))
    web.wait("the model was loaded", lambda: web.ready_pods(SPACE, "app=chat"), seconds=60)
    address = service_address(web, "chat")
    web.wait("the Service answered", lambda: answers(f"http://{address}/health"))
    question = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
    body = {"model": "smollm2", "messages": [question], "max_tokens": 24, "temperature": 0}
    answer = httpx.post(f"http://{address}/v1/chat/completions", json=body, timeout=60, trust_env=False)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    web.api.admin.delete(f"/apis/apps/v1/namespaces/{SPACE}/deployments/chat").raise_for_status()


def test_the_service_account_of_an_operator_gets_its_own_token_and_only_its_own_rights(web: Cluster) -> None:
    client = core_api(web.api.access_kubeconfig())
    assert client.list_namespaced_pod("stepway").items == []
    with pytest.raises(kubernetes.client.ApiException) as refused:
        client.list_namespaced_pod(SPACE)
    assert refused.value.status == 403
    secret = web.wait("the token was issued", lambda: token_data(web), seconds=10)
    assert {"token", "ca.crt"} <= secret.keys()


def token_data(cluster: Cluster) -> dict[str, str]:
    data: dict[str, str] = cluster.api.get("/api/v1/namespaces/stepway/secrets/stepway-token").get("data", {})
    return data


def test_pods_outlive_servers_that_are_killed_and_start_again(web: Cluster) -> None:
    before = pod_names(web)
    address = service_address(web, "web")
    for server in ("kube-apiserver", "containerd", "kubelet"):
        web.space.kill(server)
    assert fetch(f"http://{address}") in before
    web.restart("kube-apiserver", "containerd", "kubelet")
    web.wait("the node was ready", web.node_ready)
    assert pod_names(web) == before
    assert all(status["restartCount"] == 0 for pod in web.pods(SPACE, "app=web") for status in statuses(pod))


def test_a_node_whose_kubelet_hangs_is_not_ready_within_seconds(web: Cluster) -> None:
    web.space.signal("kubelet", signal.SIGSTOP)
    try:
        web.wait("the node was not ready", lambda: not web.node_ready(), seconds=25)
    finally:
        web.space.signal("kubelet", signal.SIGCONT)
    web.wait(f"{NODE} was ready", web.node_ready)

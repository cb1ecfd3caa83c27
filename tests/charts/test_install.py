"""The chart in a real cluster: every probe green, the main job through it, an upgrade under load, and nothing left over.

The tests are one story and run in their order: what one has made, the next one uses.
"""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.charts.installed import IMAGES, NAMESPACE, SERVICES, Installed, installed
from tests.e2e.instance import until
from tests.e2e.registered import SERVES
from tests.serving import Fault, FileServer
from tests.testbed.cluster import Cluster
from tests.testbed.machine import need

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def models(cluster: Cluster) -> Iterator[FileServer]:
    """Where the models come from; pods reach it at the machine's address for them."""
    with FileServer(cluster.host) as server:
        yield server


@pytest.fixture(scope="module")
def stepway(cluster: Cluster, models: FileServer) -> Iterator[Installed]:
    need("dapr", "minio", images=("llama", *IMAGES))
    cluster.load("llama")
    with installed(cluster, trusted_hosts=[f"{cluster.host}:{models.port}"], **SERVES) as made:
        yield made


@pytest.fixture(scope="module")
def served(stepway: Installed, cluster: Cluster, models: FileServer, model_file: Path) -> str:
    """The endpoint that the main job has made: the very cluster registered, a model imported, scanned and deployed."""
    form: dict[str, Any] = {
        name: (None, value)
        for name, value in {
            "step_number": "1", "workflow_total_steps": "3", "name": "this", "trigger_workflow": "true",
        }.items()
    }  # fmt: skip
    form["configuration_file"] = ("kubeconfig.yaml", cluster.api.access_kubeconfig(), "application/yaml")
    answer = stepway.ask("POST", "/clusters/clusters", files=form)
    assert answer.status_code == 200, answer.text
    cluster_id = stepway.made(answer.json())
    model = stepway.made(stepway.import_model(models.add("/smol.gguf", model_file), source="url"))
    stepway.made(stepway.scan(model))
    return stepway.made(stepway.deploy(model, cluster_id=cluster_id))


def test_every_probe_is_green(stepway: Installed) -> None:
    for service in SERVICES:
        for path in ("/startupz", "/livez", "/readyz"):
            answers = stepway.probe(service, path)
            assert [(one.status_code, one.text) for one in answers] == [(200, "ok\n")], (service, path)
        assert "process_cpu_seconds_total" in stepway.probe(service, "/metrics")[0].text


def test_the_first_admins_key_is_made_once(stepway: Installed) -> None:
    assert stepway.ask("GET", "/projects").status_code == 200
    assert "There is an admin already" in stepway.command_in("app", "db", "admin-key")


def test_a_model_is_served_to_who_asks_through_the_front(stepway: Installed, served: str) -> None:
    assert stepway.chat(served)
    assert stepway.get(f"/endpoints/{served}")["state"] == "running"


def test_settings_can_be_tried_and_the_database_dumped_in_a_pod(stepway: Installed) -> None:
    said = stepway.command_in("app", "check")
    for check in ("encryption key", "database", "object store"):
        levels = [line.split()[0] for line in said.splitlines() if line[5:].strip().startswith(f"{check}:")]
        assert levels, said
        assert "WRONG" not in levels, said
    assert stepway.command_in("app", "db", "dump", "/var/lib/stepway/dump").startswith("Dumped to ")


_CALL = """
import os, sys, urllib.request, urllib.error
request = urllib.request.Request("http://127.0.0.1:3500/v1.0/invoke/stepway-" + sys.argv[1] + "/method/" + sys.argv[2],
    b"{}", {"content-type": "application/json", "dapr-api-token": os.environ["DAPR_API_TOKEN"]})
try:
    answer = urllib.request.urlopen(request, timeout=20)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode())
"""


@pytest.mark.parametrize(
    ("caller", "callee", "path"),
    [
        ("gateway", "app", "internal/jobs/begin"),
        ("gateway", "app", "internal/app/models"),
        ("model", "app", "internal/observer/watched"),
        ("model", "cluster", "internal/runs/start"),
        ("app", "model", "internal/reach/logs"),
    ],
)
def test_who_may_not_call_is_refused_by_the_sidecar_of_who_is_called(
    stepway: Installed, caller: str, callee: str, path: str
) -> None:
    said = stepway.execute(caller, ["python3", "-c", _CALL, callee, path])
    assert said.startswith("403 "), said
    assert "access control policy has denied access" in json.loads(said.partition(" ")[2])["message"]


def test_who_may_call_gets_past_the_sidecar_and_is_asked_for_its_key(stepway: Installed) -> None:
    said = stepway.execute("gateway", ["python3", "-c", _CALL, "app", "internal/gateway/routes"])
    assert said.startswith('403 {"error":"forbidden"}'), said


def test_a_sidecar_is_not_reached_without_a_certificate(stepway: Installed) -> None:
    (pod,) = stepway.pods("app")
    with (
        httpx.Client(http1=False, http2=True, trust_env=False, timeout=10) as client,
        pytest.raises(httpx.TransportError),
    ):
        client.post(f"http://{pod['status']['podIP']}:50002/dapr.proto.internals.v1.ServiceInvocation/CallLocal")
    with httpx.Client(verify=False, trust_env=False, timeout=10) as client, pytest.raises(httpx.TransportError):
        client.get(f"https://{pod['status']['podIP']}:50002/")


def test_no_pod_has_a_token_of_the_cluster_or_may_write_to_its_own_files(stepway: Installed) -> None:
    script = (
        "import os; print(os.getuid(), os.path.exists('/var/run/secrets/kubernetes.io'), os.access('/usr', os.W_OK))"
    )
    for service in SERVICES:
        assert stepway.execute(service, ["python3", "-c", script]) == "65532 False False\n"


class Asking:
    """Asks again and again, each time on a connection of its own, until it is stopped; keeps what went wrong."""

    def __init__(self, stepway: Installed, endpoint: str) -> None:
        self.faults: list[str] = []
        self.count = {"app": 0, "gateway": 0}
        self._stop = threading.Event()
        self._headers = {"Authorization": f"Bearer {stepway.key}"}
        chat = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 2}
        asked = {
            "app": ("GET", "/models", None), "gateway": ("POST", f"/endpoints/{endpoint}/v1/chat/completions", chat),
        }  # fmt: skip
        self._threads = [
            threading.Thread(target=self._ask, args=(name, stepway.service_address(name), *given), daemon=True)
            for name, given in asked.items()
        ]

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, name: str, address: str, method: str, path: str, body: Any) -> None:
        headers = {**self._headers, "Host": f"stepway-{name}"}
        while not self._stop.wait(0.1):
            try:
                answer = httpx.request(
                    method, f"http://{address}{path}", json=body, headers=headers, timeout=60, trust_env=False
                )
            except httpx.HTTPError as error:
                self.faults.append(f"{name}: {error!r}")
            else:
                self.count[name] += 1
                if answer.status_code != 200:
                    self.faults.append(f"{name}: {answer.status_code} {answer.text[:300]}")


def test_an_upgrade_loses_no_request_and_no_job(
    stepway: Installed, served: str, models: FileServer, model_file: Path
) -> None:
    before = _pods(stepway)
    secrets = _secrets(stepway)
    # the first request only looks at the headers
    models.fail(Fault(at="/slow.gguf", skip=1, pause_after=4 << 20))
    slow = stepway.import_model(models.add("/slow.gguf", model_file.read_bytes()), source="url", name="slow")
    assert models.paused.wait(120), stepway.get(f"/jobs/{slow['job']['id']}")
    with Asking(stepway, served) as asking:
        until(lambda: all(asking.count.values()), what="the first answers")
        changed = {"podAnnotations": {"example.com/rolled": "once"}}
        stepway.upgrade({name: {**stepway.values[name], **changed} for name in SERVICES})
        counted = dict(asking.count)
        until(lambda: all(asking.count[name] > counted[name] + 5 for name in counted), what="answers afterwards")
    models.resume.set()
    assert asking.faults == []
    assert stepway.made(slow)
    until(lambda: not before & _pods(stepway), seconds=120, what="the end of the old pods")
    assert _secrets(stepway) == secrets
    jobs = stepway.get("/jobs")["data"]
    assert {job["state"] for job in jobs} == {"succeeded"}, jobs


def _pods(stepway: Installed) -> set[str]:
    return {pod["metadata"]["uid"] for service in SERVICES for pod in stepway.pods(service)}


def _secrets(stepway: Installed) -> dict[str, Any]:
    """What the chart made by itself, which no upgrade may change."""
    path = f"/api/v1/namespaces/{NAMESPACE}/secrets"
    items = stepway.cluster.api.get(path, labelSelector="app.kubernetes.io/managed-by=Helm")["items"]
    return {one["metadata"]["name"]: one["data"] for one in items}


def test_nothing_is_left_over(stepway: Installed, served: str) -> None:
    job = stepway.ended_job(stepway.delete_endpoint(served))
    assert job["state"] == "succeeded", job
    stepway.uninstall()
    deadline = time.monotonic() + 120
    while (left := stepway.objects()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []

"""Who may call what among the services, that no secret is left in anything that they and Dapr keep or tell, and one trace
through all of them.
"""

import base64
import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from services.cluster.runtimes.kubernetes.permissions import NAMESPACE
from stepway.postgres import programs
from tests.e2e.instance import until
from tests.e2e.registered import SERVES
from tests.e2e.services import Services, running_services
from tests.e2e.test_secrets import CLOSED, WEIGHTS, Markers, read_everything
from tests.hub import Hub
from tests.otlp import Receiver
from tests.shared.telemetry.test_traces import PARENT, TRACE
from tests.testbed.certificates import as_yaml, authority, encoded, kubeconfig
from tests.testbed.kwok import KwokCluster, kwok
from tests.testbed.minio import PASSWORD

__all__ = ["kwok"]

IMPORT, REGISTER = "/models/local-model-workflow", "/clusters/clusters"
BEGIN = {"fence": 1, "key": "download", "title": "Download", "weight": 1.0}

# What Dapr keeps of a run is gone when the run is over, so all that is ever written is copied.
KEEP = """
    CREATE TABLE IF NOT EXISTS public.kept (what text);
    CREATE OR REPLACE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.kept VALUES (NEW::text); RETURN NEW; END $$;
    DO $$ DECLARE one record; BEGIN
        FOR one IN SELECT oid::regclass AS name FROM pg_class
                    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'kept' LOOP
            EXECUTE format('CREATE TRIGGER keep AFTER INSERT OR UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION keep()', one.name);
        END LOOP;
    END $$"""


@dataclass
class World:
    services: Services
    hub: Hub
    traces: Receiver
    model_file: Path
    markers: Markers = field(default_factory=Markers)

    def ask(
        self,
        service: str,
        path: str,
        body: dict[str, Any],
        *,
        caller: str | None = "model",
        token: str | None = None,
        key: str | None = None,
        port: int | None = None,
    ) -> httpx.Response:
        """As the sidecar of `service` would ask it for `caller`, unless told otherwise."""
        replica = self.services.made_of.replicas[f"{service}-0"]
        headers = {"dapr-api-token": replica.daprd.app_token if token is None else token}
        if caller is not None:
            headers |= {"stepway-service": caller, "stepway-service-key": self.key(caller) if key is None else key}
        url = f"http://127.0.0.1:{port or replica.daprd.app_port}/internal/{path}"
        return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=30)

    def key(self, service: str) -> str:
        return self.services.made_of.replicas[f"{service}-0"].environment["STEPWAY_SERVICE_KEY"]

    def through_sidecar(self, of: str, to: str, path: str, body: dict[str, Any], token: str | None) -> httpx.Response:
        """As the service `of` calls another."""
        address = self.services.made_of.replicas[f"{of}-0"].daprd.address
        headers = {"stepway-service": of, "stepway-service-key": self.key(of)}
        if token is not None:
            headers["dapr-api-token"] = token
        url = f"http://127.0.0.1:{address.http_port}/v1.0/invoke/{address.prefix}{to}/method/internal/{path}"
        return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=30)

    def trigger(self, path: str, **options: Any) -> Any:
        answer = self.services.ask("POST", path, headers={"traceparent": PARENT}, **options)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def register(self, name: str, content: bytes) -> Any:
        fields = {"workflow_total_steps": "3", "step_number": "1", "trigger_workflow": "true", "name": name}
        return self.trigger(REGISTER, data=fields, files={"configuration_file": ("k.yaml", content)})

    def imported(self) -> Any:
        """An import with a credential, to its end; its job."""
        token = self.markers.new("hub token", "hf_")
        files = {"config.json": b"{}", "model.safetensors": WEIGHTS}
        self.hub.add("org/gated", files, gated=True, granted={token})
        made = self.services.post("/credentials", {"name": "hub", "type": "huggingface", "fields": {"token": token}})
        step, details = self.services.step, {"name": "gated", "uri": "org/gated", "icon": "icons/providers/openai.png"}
        workflow = step(IMPORT, None, 1, 6, modality="llm")["workflow_id"]
        step(IMPORT, workflow, 2, 6, provider_type="hugging_face")
        step(IMPORT, workflow, 3, 6, **details)
        last = {"workflow_id": workflow, "step_number": 4, "proprietary_credential_id": made["id"]}
        job = self.services.ended_job(self.trigger(IMPORT, json={**last, "trigger_workflow": True}))
        assert job["state"] == "succeeded", job
        return job


@pytest.fixture(scope="module")
def world(model_file: Path) -> Iterator[World]:
    with Hub() as hub, Receiver() as traces:
        settings = {
            "allow_loopback_clusters": True, "model_roots": model_file.parent, "otlp_endpoint": traces.url, **SERVES,
            "hf_endpoint": hub.url,
        }  # fmt: skip
        with running_services(settings) as services:
            with psycopg.connect(services.made_of.dapr_url, autocommit=True) as connection:
                connection.execute(KEEP)
            yield World(services, hub, traces, model_file)


@pytest.fixture(scope="module")
def imported(world: World) -> Any:
    return world.imported()


@pytest.fixture(scope="module")
def connecting(world: World) -> Iterator[Any]:
    """A registration of a cluster that takes connections and says nothing: its job, which works on for a while."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"https://127.0.0.1:{silent.getsockname()[1]}"
        user = {"token": world.markers.new("kubeconfig token")}
        services, content = world.services, as_yaml(kubeconfig(cluster={"server": server}, user=user))
        job = world.register("silent", content)["job"]["id"]
        until(lambda: any(one["attempt"] for one in services.get(f"/jobs/{job}")["steps"]), what="the job to try")
        yield services.get(f"/jobs/{job}")
        services.ask("POST", f"/jobs/{job}/cancel")


# ---- who may call what


def test_internal_routes_are_on_the_loopback_listener_only(world: World) -> None:
    for replica in world.services.made_of.replicas.values():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", replica.daprd.app_port), timeout=5)  # it is this machine too
        socket.create_connection(("127.0.0.1", replica.daprd.app_port), timeout=5).close()


def test_the_public_port_has_no_internal_routes(world: World, imported: Any) -> None:
    app, gateway = (world.services.made_of.replicas[name] for name in ("app-0", "gateway-0"))
    body = {**BEGIN, "job": imported["id"]}
    for port in (app.port, gateway.port, httpx.URL(world.services.url).port):
        for path in ("jobs/begin", "app/credential", "gateway/routes"):
            assert world.ask("app", path, body, port=port).status_code in (401, 404)
    for port in (app.metrics_port, world.services.made_of.replicas["model-0"].metrics_port):
        assert world.ask("app", "jobs/begin", body, port=port).status_code in (404, 405, 501)
    through = world.services.ask("POST", "/internal/jobs/begin", json=body)  # with an administrator's key
    assert through.status_code == 404


@pytest.mark.parametrize("path", ["jobs/begin", "app/credential", "observer/clusters", "gateway/routes"])
def test_a_call_needs_our_sidecars_token_and_a_services_key(world: World, path: str) -> None:
    body = {"job": str(uuid4()), **BEGIN}
    other = world.services.made_of.replicas["model-0"].daprd
    for token in ("", "forged", other.app_token, other.address.token):
        assert world.ask("app", path, body, token=token).status_code == 401
    assert world.ask("app", path, body, caller=None).status_code == 403
    for forged in ("", "forged", world.key("cluster")):
        assert world.ask("app", path, body, caller="model", key=forged).status_code == 403
    assert world.ask("app", path, body, caller="app", key=world.key("model")).status_code == 403


def test_each_port_has_its_callers(world: World) -> None:
    job = {"job_id": str(uuid4()), "cluster_id": str(uuid4())}
    assert world.ask("app", "app/kubeconfig", job, caller="gateway").status_code == 403
    assert world.ask("app", "observer/clusters", {}, caller="model").status_code == 403
    assert world.ask("app", "gateway/routes", {"seen": None}, caller="cluster").status_code == 403
    assert world.ask("app", "observer/clusters", {}, caller="cluster").status_code == 200
    # What a service serves is the app's to call: with its own key it may not be called by itself or by another.
    order = {"instance": f"{uuid4()}.1", "stale": True}
    for caller in ("model", "cluster", "gateway"):
        key = world.key("model")
        assert world.ask("model", "runs/forget", order, caller=caller, key=key).status_code == 403
    assert world.ask("model", "runs/forget", order, caller="app", key=world.key("model")).status_code == 200


def test_a_service_may_not_touch_anothers_jobs(world: World, imported: Any, connecting: Any) -> None:
    mine = {"job": imported["id"], "fence": 1}
    token = {"token": str(uuid4())}
    calls: dict[str, dict[str, Any]] = {
        "begin": {**BEGIN, **mine}, "succeed": {**mine, "key": "download", **token, "result": None},
        "fail": {**mine, "key": "download", **token, "error": {}, "again": False, "after": 0},
        "progress": {**mine, "key": "download", **token, "percent": 1, "message": None},
        "wait": {**mine, "key": "download", "seconds": None, "event": "go"},
        "begin_undo": {**mine, "key": "download"}, "undone": {**mine, "key": "download"},
        "undo_failed": {**mine, "key": "download", "error": {}}, "end_succeeded": {**mine, "result": None},
        "end_failed": {**mine, "error": {}, "undo": False}, "end_undone": {**mine, "left": [], "failure": None},
        "end_parked": {**mine, "seconds": None, "names": []}, "release": mine,
    }  # fmt: skip
    for method, body in calls.items():
        refused = world.ask("app", f"jobs/{method}", body, caller="cluster")
        assert (refused.status_code, refused.json().get("code")) == (409, "not_your_job"), method
        own = world.ask("app", f"jobs/{method}", body, caller="model")
        assert own.json() is None or own.json().get("code") != "not_your_job", method
    assert world.services.get(f"/jobs/{imported['id']}") == imported


def test_a_service_may_not_ask_for_secrets_of_anothers_jobs(world: World, connecting: Any) -> None:
    """Not even with the id of a job that lives, and of what that job is about."""
    ((cluster_id,),) = world.services.sql("SELECT input->>'cluster_id' FROM jobs.job WHERE id = %s", connecting["id"])
    body = {"job_id": connecting["id"], "cluster_id": cluster_id}

    def answered(caller: str, code: str | None) -> httpx.Response | None:
        """Between two tries the job does not run, and nobody may ask in its name."""
        answer = world.ask("app", "app/kubeconfig", body, caller=caller)
        said = answer.json()["code"] if answer.status_code == 409 else None
        assert said in (code, "not_this_jobs_business"), answer.text
        return answer if said == code else None

    refused = until(lambda: answered("model", "not_your_job"), what="the job to run")
    assert refused is not None
    assert refused.status_code == 409
    given = until(lambda: answered("cluster", None), what="the job to run")
    assert given is not None
    assert world.markers.planted["kubeconfig token"] in base64.b64decode(given.json()).decode()


def test_a_service_may_not_speak_for_anothers_process(world: World) -> None:
    ((process,),) = world.services.sql("SELECT id FROM jobs.process WHERE service = 'cluster'")
    replica = {"id": str(uuid4()), "service": "cluster", "host": "h", "pid": 1, "started": "s", "kinds": {}}
    in_its_place = {**replica, "id": str(process), "service": "model"}
    before = world.services.sql("SELECT kinds, service FROM jobs.process WHERE id = %s", process)
    for method, body in (
        ("beat", {"process": str(process), "working": []}), ("hold", {"process": str(process), "name": "watch"}),
        ("join", {"replica": replica}), ("join", {"replica": in_its_place}),
    ):  # fmt: skip
        refused = world.ask("app", f"jobs/{method}", body, caller="model")
        assert (refused.status_code, refused.json()["kind"]) == (409, "permanent"), method
    assert world.ask("app", "jobs/leave", {"process": str(process)}, caller="model").status_code == 200
    # It has not left, nor become another's.
    assert world.services.sql("SELECT kinds, service FROM jobs.process WHERE id = %s", process) == before
    assert not world.services.sql("SELECT 1 FROM jobs.lease WHERE name = 'watch'")


def test_a_sidecar_serves_only_who_has_its_token(world: World, imported: Any) -> None:
    body = {**BEGIN, "job": imported["id"]}
    address = world.services.made_of.replicas["model-0"].daprd.address
    others = world.services.made_of.replicas["cluster-0"].daprd
    for token in (None, "", "forged", others.address.token, others.app_token):
        assert world.through_sidecar("model", "app", "jobs/begin", body, token).status_code == 401
        headers = {} if token is None else {"dapr-api-token": token}
        for path in ("metadata", "state/workflows/x", "secrets/environment/PATH"):
            url = f"http://127.0.0.1:{address.http_port}/v1.0/{path}"
            assert httpx.get(url, headers=headers, trust_env=False).status_code == 401
    let_in = world.through_sidecar("model", "app", "jobs/begin", body, address.token)
    assert let_in.status_code in (200, 409), let_in.text  # the job is over: its step is remembered
    # The services read no secret of the sidecar's environment, though they have its token.
    url = f"http://127.0.0.1:{address.http_port}/v1.0/secrets/environment/STEPWAY_DAPR_DATABASE_URL"
    assert httpx.get(url, headers={"dapr-api-token": address.token}, trust_env=False).status_code == 403
    # Its own app port is the only one that it calls without a key: a call without one is the service's to refuse.
    url = f"http://127.0.0.1:{address.http_port}/v1.0/invoke/{address.prefix}app/method/internal/jobs/begin"
    answer = httpx.post(url, json=body, headers={"dapr-api-token": address.token}, trust_env=False)
    assert answer.status_code == 403


# ---- one trace


def test_a_job_of_another_service_is_in_the_trace_of_its_request(world: World, imported: Any, connecting: Any) -> None:
    for job, path, kind, step in ((imported, IMPORT, "import_model", "download"),
                                  (connecting, REGISTER, "register_cluster", "connect")):  # fmt: skip
        name = f"step {kind}/{step}"
        world.services.ask("POST", f"/jobs/{job['id']}/cancel")  # a span is told of when it ends
        until_named(world.traces, name)
        request = next(one for one in world.traces.named(f"POST {path}") if one.trace == TRACE)
        (submit,) = world.traces.named(f"submit {kind}")
        assert (request.parent, submit.parent) == (PARENT.split("-")[2], request.id)
        steps = [one for one in world.traces.named(name) if one.attributes["stepway.job"] == job["id"]]
        assert {(one.trace, one.parent) for one in steps} == {(TRACE, submit.id)}
        assert request.process == submit.process
        assert submit.process not in {one.process for one in steps}
    services = {name: world.traces.named(name)[0].process for name in ("step import_model/download",
                                                                       "step register_cluster/connect")}  # fmt: skip
    assert len(set(services.values())) == 2


def until_named(traces: Receiver, name: str) -> None:
    traces.until(lambda: traces.named(name), what=name)


# ---- no secret


@pytest.mark.timeout(300)
def test_no_secret_is_kept_or_told(world: World, imported: Any, connecting: Any, kwok: KwokCluster) -> None:
    use_a_provider(world, kwok, use_a_cluster(world, kwok))
    services, markers = world.services, world.markers
    services.ask("POST", f"/jobs/{connecting['id']}/cancel")
    until(lambda: not services.sql("SELECT 1 FROM jobs.job WHERE ended_at IS NULL"), what="all jobs to end")
    plant_those_of_the_installation(world)
    read_everything(services)

    seen = list(everything(world))
    found = [one for where, content in seen for one in found_in(markers, where, content)]
    assert not found
    # That it would be found: what is no secret is.
    shown = dict(seen)
    job = imported["id"].encode()
    assert any(job in content or job.hex().encode() in content for where, content in seen if where == "Dapr's state")
    assert any(job in content for where, content in seen if "the scheduler's" in where)
    assert b"INSERT INTO platform.credential" in shown["the database"]
    assert any(b"step import_model/download" in content for where, content in seen if where == "the spans")
    assert any(b"service_ready" in content for where, content in seen if "log" in where)
    assert any(b"stepway_" in content for where, content in seen if "metrics" in where)
    assert any(b"dapr_http_server" in content for where, content in seen if where.endswith("'s sidecar"))
    markers.planted["no secret"] = "org/gated"
    assert "no secret in Dapr's state" in found_in(markers, "Dapr's state", shown["Dapr's state"])


def use_a_cluster(world: World, kwok: KwokCluster) -> str:
    """Register a real one by its token, and deploy to it far enough that a key for workers is made; its id."""
    services, content = world.services, kwok.api.access_kubeconfig()
    token = content.decode().partition("token: ")[2].split()[0].strip("\"'")
    assert len(token) > 100
    world.markers.planted["service account's token"] = token.rpartition(".")[2][:40]
    key = authority().issue("someone")
    world.markers.planted["kubeconfig key"] = encoded(key.key)[40:90]
    user = {"token": None, "client-certificate-data": encoded(key.certificate), "client-key-data": encoded(key.key)}
    closed = world.register("by-key", as_yaml(kubeconfig(cluster={"server": CLOSED}, user=user)))["job"]["id"]
    until(lambda: any(one["error"] for one in services.get(f"/jobs/{closed}")["steps"]), what="the job to have tried")
    services.ask("POST", f"/jobs/{closed}/cancel")
    cluster = services.made(world.register("real", content))
    model = services.made(services.import_model(str(world.model_file), name="served"))
    services.made(services.scan(model))
    job = services.deploy(model, cluster_id=cluster)["job"]["id"]
    for number, found in enumerate(until(partial(secrets_in, kwok), what="the secrets of the deployment")):
        world.markers.planted[f"worker key {number}"] = found
    services.ask("POST", f"/jobs/{job}/cancel")
    return cluster


def secrets_in(kwok: KwokCluster) -> list[str]:
    listed = kwok.api.get(f"/api/v1/namespaces/{NAMESPACE}/secrets")["items"]
    found = [base64.b64decode(value).decode() for one in listed for value in (one.get("data") or {}).values()]
    return [one for one in found if len(one) > 20]  # others are numbers and names


def use_a_provider(world: World, kwok: KwokCluster, cluster: str) -> None:
    """Deploy a model that a provider serves, until the job has brought the provider's key to the cluster."""
    services, step, key = world.services, world.services.step, world.markers.new("provider key", "sk-")
    credential = services.post("/credentials", {"name": "cloud", "type": "openai", "fields": {"api_key": key}})["id"]
    listed = services.get("/models/providers?type=cloud_model&limit=200")["data"]
    provider = next(one["id"] for one in listed if one["key"] == "openai")
    model = services.made(step(
        "/models/cloud-model-workflow", None, 1, 6, provider_type="cloud_model", provider_id=provider, name="cloud",
        uri="openai/gpt4", modality="llm", trigger_workflow=True,
    ))  # fmt: skip
    config = {"concurrent_requests": 1, "avg_sequence_length": 64, "avg_context_length": 64}
    project = services.get("/projects")["data"][0]["id"]
    job = step(
        "/models/deploy-workflow", None, 1, 7, project_id=project, model_id=model, credential_id=credential,
        endpoint_name="cloud", deploy_config=config, cluster_id=cluster, trigger_workflow=True,
    )["job"]["id"]  # fmt: skip
    until(lambda: key in secrets_in(kwok), what="the provider's key to be used")
    services.ask("POST", f"/jobs/{job}/cancel")


def plant_those_of_the_installation(world: World) -> None:
    made, planted = world.services.made_of, world.markers.planted
    planted |= {"S3 secret": PASSWORD, "admin key": world.services.key,
                "service secret": made.replicas["app-0"].environment["STEPWAY_SERVICE_SECRET"]}  # fmt: skip
    for name, replica in made.replicas.items():
        planted |= {
            f"token of {name}'s sidecar": replica.daprd.address.token,
            f"token for {name}": replica.daprd.app_token,
        }
        if replica.service != "app":
            planted[f"key of {name}"] = world.key(replica.service)
    ring = json.loads((made.folder.path / "encryption.key").read_text())
    planted["encryption key"] = next(iter(ring["keys"].values()))["key"]


def everything(world: World) -> Iterator[tuple[str, bytes]]:
    """Where it is, and what."""
    services, made = world.services, world.services.made_of
    yield "the database", dumped(made.database_url)
    yield "Dapr's database", dumped(made.dapr_url)
    kept = b"\n".join(row[0].encode() for row in services.dapr_sql("SELECT what FROM public.kept"))
    yield "Dapr's state", kept + b"\n" + b"\n".join(unhexed(kept))
    plane = made.dapr.processes.folder
    for path in (plane / "scheduler").rglob("*"):
        if path.is_file():
            yield "the scheduler's data", path.read_bytes()
    for folder in (plane, made.folder.path):
        for path in folder.rglob("*.log"):
            yield f"the log {path.name}", path.read_bytes()
    for body in world.traces.raw:
        yield "the spans", body
    for answer in services.answers:
        yield "an answer", answer.encode()
    for name, replica in made.replicas.items():
        metrics = httpx.get(f"http://127.0.0.1:{replica.metrics_port}/metrics", trust_env=False)
        yield f"the metrics of {name}", metrics.content
        metrics = httpx.get(f"http://127.0.0.1:{replica.daprd.metrics_port}/metrics", trust_env=False)
        yield f"the metrics of {name}'s sidecar", metrics.content
    for pid in (*map(made.processes.pid, made.replicas), *(plane_pid for plane_pid in pids(world))):
        with contextlib.suppress(OSError):
            yield f"the command line of {pid}", Path(f"/proc/{pid}/cmdline").read_bytes()


def pids(world: World) -> list[int]:
    made = world.services.made_of
    return [made.dapr.processes.pid(one.daprd.name) for one in made.replicas.values()]


def dumped(url: str) -> bytes:
    command = [str(programs.program("pg_dump")), f"--dbname={url}", "--format=plain", "--inserts"]
    return subprocess.run(command, capture_output=True, check=True, env=programs.environment()).stdout


def unhexed(rows: bytes) -> Iterator[bytes]:
    """The bytes that PostgreSQL shows as hexadecimal digits."""
    for part in rows.split(b"\\x")[1:]:
        digits = part[: len(part) - len(part.lstrip(b"0123456789abcdef"))]
        yield bytes.fromhex(digits.decode()[: len(digits) // 2 * 2])


def found_in(markers: Markers, where: str, content: bytes) -> list[str]:
    """Also as base64, wherever in it the secret begins."""
    found = markers.found_in(where, content)
    for place, marker in markers.planted.items():
        for before in range(3):
            form = base64.b64encode(b"\0" * before + marker.encode())[4 if before else 0 : -4]
            if len(form) > 8 and form in content:
                found.append(f"{place} as base64 in {where}")
    return found

"""Secrets stay secret: markers go in wherever a secret may, everything runs, and then no marker is found anywhere.

Looked through: the database as SQL, every log, the command lines and environments of all processes, every answer, the
metrics, the spans, and a backup without its key files.
"""

import contextlib
import io
import json
import secrets
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.embedded.backup import run_backup
from shared.settings import Settings
from stepway.postgres import programs
from tests.e2e.conftest import Make
from tests.e2e.instance import Stepway, until
from tests.e2e.test_flows import ended
from tests.e2e.test_seen import probes
from tests.hub import Hub
from tests.openai_server import OpenAIServer
from tests.otlp import Receiver
from tests.testbed.certificates import as_yaml, authority, encoded, kubeconfig

WEIGHTS = (2).to_bytes(8, "little") + b"{}"
CLOSED = "https://127.0.0.1:9"


class Markers:
    """Secrets that are like nothing else, by the place in which they were planted."""

    def __init__(self) -> None:
        self.planted: dict[str, str] = {}

    def new(self, place: str, prefix: str = "") -> str:
        self.planted[place] = f"{prefix}{secrets.token_hex(16)}"
        return self.planted[place]

    def found_in(self, where: str, content: bytes, *, but: tuple[str, ...] = ()) -> list[str]:
        """Also as PostgreSQL writes bytes, and as base64."""
        found = []
        for place, marker in self.planted.items():
            forms = (marker.encode(), marker.encode().hex().encode(), encoded(marker.encode())[:-4].encode())
            if place not in but and any(form in content for form in forms):
                found.append(f"{place} in {where}")
        return found


def use_everything(stepway: Stepway, hub: Hub, model_file: Path, markers: Markers) -> None:
    """Give secrets to all that takes them, rightly and wrongly, and use them."""
    token = markers.new("hub token", "hf_")
    hub.add("org/gated", {"config.json": b"{}", "model.safetensors": WEIGHTS}, gated=True, granted={token})
    made = stepway.post("/credentials", {"name": "hub", "type": "huggingface", "fields": {"token": token}})
    openai = {"name": "cloud", "type": "openai", "fields": {"api_key": markers.new("credential", "sk-")}}
    again = {"Idempotency-Key": "once"}
    assert stepway.ask("POST", "/credentials", json=openai, headers=again).status_code == 201
    assert stepway.ask("POST", "/credentials", json=openai, headers=again).status_code == 201
    wrong = {"name": "bad", "type": "openai", "fields": {"apikey": markers.new("misspelt field")}}
    assert stepway.ask("POST", "/credentials", json=wrong).status_code == 422
    wrong = {"name": "bad", "type": "openai", "secret": markers.new("unknown member"), "fields": {}}
    assert stepway.ask("POST", "/credentials", json=wrong).status_code == 422

    ended = stepway.ended_job(
        stepway.import_model("org/gated", source="hugging_face", name="gated", credential=made["id"])
    )
    assert ended["state"] == "succeeded", ended
    hub.tokens.discard(token)  # revoked there: the next import fails, and says why
    ended = stepway.ended_job(
        stepway.import_model("org/gone", source="hugging_face", name="gone", credential=made["id"])
    )
    assert ended["state"] == "failed"
    with contextlib.suppress(AssertionError):  # refused
        stepway.import_model(f"https://user:{markers.new('uri')}@host.example/model.gguf", source="url", name="url")

    register(stepway, "token", {"token": markers.new("kubeconfig token")})
    key = authority().issue("someone")
    pem = encoded(key.key)
    markers.planted["kubeconfig key"] = pem[40:90]
    register(stepway, "key", {"token": None, "client-certificate-data": encoded(key.certificate),
                              "client-key-data": pem})  # fmt: skip

    answer = stepway.ask("POST", "/keys", json={"name": "bot"}, headers={"Idempotency-Key": "key"})
    stepway.answers.pop()  # the one answer that shows it
    markers.planted["API key"] = answer.json()["key"]
    assert stepway.ask("GET", "/me", key=markers.planted["API key"]).status_code == 200
    stepway.ask("POST", "/keys", json={"name": "bot"}, headers={"Idempotency-Key": "key"})
    stepway.ask("GET", "/me", key=markers.new("wrong API key", "sk_stepway_"))
    markers.planted["admin key"] = stepway.key

    _, endpoint = stepway.serve(model_file)
    assert stepway.chat(endpoint)
    folder = stepway.data / "machine" / "workers" / "endpoints" / endpoint
    markers.planted["worker key"] = (folder / "api_key").read_text()
    ring = json.loads((stepway.data / "encryption.key").read_text())
    markers.planted["encryption key"] = next(iter(ring["keys"].values()))["key"]


def use_flows(stepway: Stepway, openai: OpenAIServer, markers: Markers) -> None:
    """The provider's key by header and by credential, also where it is refused; the secrets of webhooks and triggers."""
    task: dict[str, Any] = {
        "ref": "sum",
        "type": "openai.text.summarize",
        "input": {"text": "Much text.", "model": "gpt-4o-mini"},
    }
    flow = stepway.post("/flow/workflows", {"name": "summary", "tasks": [task], "output": [
        {"name": "all", "type": "text", "value": "{{refs.sum.output.summary}}"},
    ]})["workflow_id"]  # fmt: skip
    for key, status in ((openai.key, "COMPLETED"), (markers.new("wrong provider key", "sk-"), "FAILED")):
        again = {"X-Provider-Key": key, "Idempotency-Key": status}
        body = {"input": {}, "webhook_url": f"{openai.url}/hook"}
        for _ in range(2):
            started = stepway.ask("POST", f"/flow/workflows/{flow}/execute", json=body, headers=again).json()
        end = ended(stepway, f"/workflows/{flow}/executions/{started['execution_id']}")
        assert end["status"] == status, end
    fields = {"api_key": openai.key}
    credential = stepway.post("/credentials", {"name": "summaries", "type": "openai", "fields": fields})["id"]
    task["input"] |= {"credential_id": credential}
    stepway.ask("PUT", f"/flow/workflows/{flow}", json={"name": "summary", "tasks": [task]})
    started = stepway.post(f"/flow/workflows/{flow}/execute", {"input": {}})
    end = ended(stepway, f"/workflows/{flow}/executions/{started['execution_id']}")
    assert end["status"] == "COMPLETED", end
    project = stepway.get("/projects")["data"][0]["id"]
    hook: dict[str, Any] = {"project_id": project, "url": f"{openai.url}/hook", "events": ["*"]}
    trigger: dict[str, Any] = {"mapping": {}}
    for place, path, body in (("webhook", "/webhooks", hook), ("trigger", f"/flow/workflows/{flow}/triggers", trigger)):
        answer = stepway.ask("POST", path, json=body)
        stepway.answers.pop()  # the one answer that shows it
        assert answer.status_code == 201, answer.text
        markers.planted[place] = answer.json()["secret"].removeprefix("whsec_")


def register(stepway: Stepway, name: str, user: dict[str, Any]) -> None:
    """A cluster that cannot be reached; its job is stopped once it has tried."""
    content = as_yaml(kubeconfig(cluster={"server": CLOSED}, user=user))
    fields = {"workflow_total_steps": "3", "step_number": "1", "trigger_workflow": "true", "name": name,
              "icon": "icons/providers/openai.png"}  # fmt: skip
    answer = stepway.ask("POST", "/clusters/clusters", data=fields, files={"configuration_file": ("k.yaml", content)})
    assert answer.status_code < 300, answer.text
    job = answer.json()["job"]["id"]
    until(lambda: any(step["attempt"] > 0 and step["error"] for step in stepway.get(f"/jobs/{job}")["steps"])
          or stepway.get(f"/jobs/{job}")["ended_at"], what="the job to have tried")  # fmt: skip
    stepway.ask("POST", f"/jobs/{job}/cancel")
    until(lambda: stepway.get(f"/jobs/{job}")["ended_at"], what="the job to end")


def read_everything(stepway: Stepway) -> None:
    """Every list, every job with its events, and every draft."""
    for path in ("credentials", "clusters", "models", "endpoints", "keys", "users", "audit", "workflows", "projects"):
        for one in stepway.get(f"/{path}?limit=100")["data"]:
            if path in ("workflows", "clusters", "models", "credentials", "endpoints"):
                stepway.get(f"/{path}/{one['id'] if 'id' in one else one['workflow_id']}")
    for job in stepway.get("/jobs?limit=100")["data"]:
        stepway.get(f"/jobs/{job['id']}")
        stepway.ask("GET", f"/jobs/{job['id']}/events")


def database(stepway: Stepway) -> bytes:
    command = [str(programs.program("pg_dump")), f"--dbname={stepway.database()}", "--format=plain", "--inserts"]
    return subprocess.run(command, capture_output=True, check=True, env=programs.environment()).stdout


def processes(stepway: Stepway) -> Iterator[tuple[str, bytes]]:
    for pid in stepway.processes():
        for file in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                yield f"{file} of {pid}", Path(f"/proc/{pid}/{file}").read_bytes()


def archived(file: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(file) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None and member.name not in ("encryption.key", "admin.key"):
                yield f"{member.name} of the backup", content.read()


@pytest.mark.timeout(300)
def test_no_secret_is_anywhere_in_clear(make: Make, model_file: Path, folder: Path) -> None:
    markers = Markers()
    with Hub() as hub, Receiver() as traces, OpenAIServer(markers.new("provider key", "sk-")) as openai:
        given = {"hf_endpoint": hub.url, "allow_loopback_clusters": "true"}
        given |= {"flow_openai_base_url": openai.base_url, "trusted_hosts": f"127.0.0.1:{openai.port}"}
        stepway = make(**given, otlp_endpoint=traces.url, metrics_port=0).start()
        use_flows(stepway, openai, markers)
        use_everything(stepway, hub, model_file, markers)
        read_everything(stepway)
        sql = database(stepway)
        assert b"INSERT INTO platform.credential" in sql
        found = markers.found_in("the database", sql)
        seen = list(processes(stepway))
        assert len(seen) > 4
        for where, content in seen:
            found += markers.found_in(where, content)
        for answer in stepway.answers:
            found += markers.found_in("an answer", answer.encode())
        metrics = httpx.get(f"{probes(stepway)}/metrics", trust_env=False).content
        assert b"stepway_jobs_ended_total" in metrics
        found += markers.found_in("the metrics", metrics)
        assert run_backup(Settings(data_dir=stepway.data), folder / "backup.tar", lambda _: None) == 0
        stepway.stop()
        assert {"step import_model/download", "step register_cluster/connect"} <= {span.name for span in traces.spans}
    for body in traces.raw:
        found += markers.found_in("the spans", body)
    found += markers.found_in("the log", stepway.log.read_bytes(), but=("admin key",))  # said once, at the first start
    logs = [*stepway.data.rglob("*.log"), *stepway.data.rglob("*.err")]
    assert any("postgres" in path.name for path in logs)
    assert any("worker" in path.name for path in logs)
    for path in logs:
        found += markers.found_in(path.name, path.read_bytes())
    for where, content in archived(folder / "backup.tar"):
        found += markers.found_in(where, content)
    assert not found
    assert markers.found_in("itself", io.BytesIO(stepway.key.encode()).getvalue()) == ["admin key in itself"]

"""A whole Stepway, seen from outside: its traces at a receiver, its metrics as the dashboard asks for them, its probes."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from stepway.postgres.embedded import EmbeddedPostgres
from tests.e2e.conftest import Make
from tests.e2e.instance import ROOT, Stepway, until
from tests.e2e.promql import series
from tests.otlp import Receiver
from tests.shared.telemetry.test_traces import PARENT, TRACE

FILES = ROOT / "deploy" / "observability"
OF_PROMETHEUS = {"job", "instance"}  # labels that it adds to what it scrapes
MIGRATION_LOCK = 5308417


def probes(stepway: Stepway) -> str:
    """The address of the metrics and probes, as the log tells it."""

    def look() -> str | None:
        lines = [line for line in stepway.said().splitlines() if "metrics_served" in line]
        found = re.search(r"port\W+(\d+)", lines[-1]) if lines else None
        return found[1] if found is not None else None

    return f"http://127.0.0.1:{until(look, what='the port of the probes')}"


def ask(url: str) -> tuple[int, str]:
    answer = httpx.get(url, trust_env=False, timeout=30)
    return answer.status_code, answer.text


@pytest.mark.timeout(300)
def test_a_deployment_is_one_trace_and_the_dashboard_asks_for_what_there_is(make: Make, model_file: Path) -> None:
    with Receiver() as receiver:
        stepway = make(otlp_endpoint=receiver.url, metrics_port=0).start()
        model = stepway.made(stepway.import_model(str(model_file)))
        stepway.made(stepway.scan(model))
        path = "/models/deploy-workflow"
        project, (cluster,) = stepway.get("/projects")["data"][0]["id"], stepway.get("/clusters")["data"]
        workflow = stepway.step(path, None, 1, 6, project_id=project, model_id=model)["workflow_id"]
        config = {"concurrent_requests": 1, "avg_sequence_length": 64, "avg_context_length": 64}
        stepway.step(path, workflow, 3, 6, endpoint_name="chat", deploy_config=config)
        body = {"workflow_id": workflow, "step_number": 5, "cluster_id": cluster["id"], "trigger_workflow": True}
        answer = stepway.ask("POST", path, json=body, headers={"traceparent": PARENT})
        assert answer.status_code == 200, answer.text
        assert TRACE in answer.headers["traceparent"]
        endpoint = stepway.made(answer.json())
        assert stepway.chat(endpoint)
        check_trace(receiver, workflow)
        failed = stepway.import_model(str(model_file.with_name("missing.gguf")), name="missing")
        assert stepway.ended_job(failed)["state"] == "failed"
        status, text = ask(f"{probes(stepway)}/metrics")
        assert status == 200
        check_files(text)
        check_counts(text, endpoint)


def check_trace(receiver: Receiver, workflow: str) -> None:
    """From the trigger that the caller's trace came with, through the job's steps, to the worker that is ready."""

    def ours() -> dict[str, Any]:
        return {span.name: span for span in receiver.spans if span.trace == TRACE}

    receiver.until(lambda: "run deploy_model" in ours())
    spans = ours()
    request, submit = spans["POST /models/deploy-workflow"], spans["submit deploy_model"]
    assert (request.parent, submit.parent) == (PARENT.split("-")[2], request.id)
    for step in ("verify", "bring_model", "apply", "wait_ready", "probe", "publish"):
        assert spans[f"step deploy_model/{step}"].parent == submit.id
        assert spans[f"step deploy_model/{step}"].attributes["stepway.workflow"] == workflow
    for outside, step in (("machine apply", "apply"), ("machine wait until ready", "wait_ready"),
                          ("ask a worker", "probe")):  # fmt: skip
        assert spans[outside].parent == spans[f"step deploy_model/{step}"].id
    assert spans["run deploy_model"].attributes["stepway.outcome"] == "succeeded"


def check_files(text: str) -> None:
    """Every expression of the dashboard and the alerts names series that are exposed, and labels that they have."""
    known: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    rules = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"][0]["rules"]
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    expressions = [target["expr"] for target in targets] + [rule["expr"] for rule in rules]
    assert len(expressions) > 30
    for expression in expressions:
        used = series(expression)
        assert used, expression
        for name, labels in used.items():
            assert name in known, expression
            assert labels <= known[name] | OF_PROMETHEUS, (expression, labels - known[name])
    for target in targets:
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert all(shown <= labels | OF_PROMETHEUS for labels in series(target["expr"]).values()), target
    sections = set(re.findall(r"(?m)^## (.*)$", (ROOT / "docs" / "operating.md").read_text()))
    assert {rule["annotations"]["see"] for rule in rules} <= sections
    assert all(rule["annotations"]["do"] and rule["annotations"]["summary"] for rule in rules)


def check_counts(text: str, endpoint: str) -> None:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(name: str, **labels: str) -> float:
        (found,) = (one.value for one in samples if (one.name, one.labels) == (f"stepway_{name}", labels))
        return float(found)

    trigger = {"route": "/models/deploy-workflow", "method": "POST"}
    assert value("http_requests_total", **trigger, status_class="2xx") == 3
    assert value("http_request_seconds_count", **trigger) == 3
    assert value("jobs_ended_total", kind="import_model", state="succeeded") == 1
    assert value("jobs_ended_total", kind="import_model", state="failed") == 1
    assert value("step_seconds_count", kind="deploy_model", step="wait_ready", outcome="succeeded") == 1
    assert value("jobs", kind="deploy_model", state="running") == 0
    assert value("database_up") == 1
    assert value("gateway_requests_total", endpoint=endpoint, operation="chat.completions", status_class="2xx") == 1
    assert value("gateway_tokens_total", endpoint=endpoint, direction="completion") > 0
    routes = {one.labels["route"] for one in samples if one.name == "stepway_http_requests_total"}
    assert "/endpoints/{endpoint_id}/v1/{path:path}" in routes
    assert not [route for route in routes if endpoint in route]


@contextmanager
def frozen(postmaster: int) -> Iterator[None]:
    """A database server that hangs: no process of it does anything."""
    pids = [postmaster]
    os.kill(postmaster, signal.SIGSTOP)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == postmaster:
            pids.append(int(path.parent.name))
    for pid in pids[1:]:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.timeout(300)
def test_probes_tell_what_is_broken(make: Make) -> None:
    stepway = make(metrics_port=0).start()
    at = probes(stepway)
    assert ask(f"{at}/startupz")[0] == ask(f"{at}/livez")[0] == ask(f"{at}/readyz")[0] == 200
    (postmaster,) = stepway.postgres()
    with frozen(postmaster):
        until(lambda: ask(f"{at}/readyz") == (503, "database\n"), what="the database to be missed")
        assert stepway.ask("GET", "/readyz").status_code == 503
        assert ask(f"{at}/livez") == (200, "ok\n")
        assert stepway.ask("GET", "/healthz").status_code == 200
        assert "\nstepway_database_up 0.0\n" in until_metrics(at, "stepway_database_up 0.0")
    until(lambda: ask(f"{at}/readyz")[0] == 200, what="it to be ready again")
    until_metrics(at, "stepway_database_up 1.0")
    hidden = stepway.data / "hidden"
    (stepway.data / "objects").rename(hidden)
    assert ask(f"{at}/readyz") == (503, "objects\n")
    hidden.rename(stepway.data / "objects")
    assert ask(f"{at}/readyz")[0] == 200


def until_metrics(at: str, line: str) -> str:
    def look() -> str | None:
        _, text = ask(f"{at}/metrics")
        return text if line in text else None

    found = until(look, what=line)
    assert found is not None
    return found


@pytest.mark.timeout(300)
def test_the_start_says_that_it_migrates(make: Make, folder: Path) -> None:
    postgres = EmbeddedPostgres(folder / "elsewhere", durable=False)
    url = postgres.start()
    try:
        stepway = make(metrics_port=0, database_url=url, log_format="text")
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
            stepway.spawn()
            at = probes(stepway)
            until(lambda: ask(f"{at}/startupz") == (503, "migrating the database\n"), what="the migration")
            assert ask(f"{at}/livez")[0] == 200
            assert ask(f"{at}/readyz")[0] == ask(f"{at}/metrics")[0] == 503
        stepway.wait_ready()
        assert ask(f"{at}/startupz")[0] == 200
        stepway.stop()
        assert not [line for line in stepway.said().splitlines() if line.startswith("{")]
    finally:
        postgres.stop()

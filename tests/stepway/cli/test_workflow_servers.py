"""`stepway workflow-servers` and `stepway workflow-runs`, of a server that registers and reports by hand."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from stepway.client import Client
from tests.stepway.cli.conftest import Run

MOMENT = "2026-01-02T03:04:05+00:00"


@pytest.fixture
def server(client: Client) -> Iterator[dict[str, Any]]:
    served = {"name": "greet", "start_schema": {"title": "Order"}, "events": ["Approval"]}
    name = f"flows-{uuid4().hex[:8]}"
    made = client.post("/workflow-servers", {"name": name, "instance": "i", "workflows": [served]})
    run = {"workflow": "greet", "started_at": MOMENT, "updated_at": MOMENT}
    ended = {"status": "failed", "error": "out of paper", "completed_at": MOMENT}
    changes = [
        {**run, "handler_id": f"{name}-goes-on", "run_id": "r1", "status": "running"},
        {**run, "handler_id": f"{name}-over", "run_id": "r2", **ended},
    ]  # fmt: skip
    client.post(f"/workflow-servers/{made['id']}/report", {"changes": changes})
    yield made
    if any(one["id"] == made["id"] for one in client.items("/workflow-servers")):
        client.delete(f"/workflow-servers/{made['id']}")


def test_servers(run: Run, server: dict[str, Any]) -> None:
    name = server["name"]
    assert name in run("workflow-servers", "list", "-f", "state=online").out
    assert run("workflow-servers", "show", name, "-o", "json").json["state"] == "online"
    served = run("workflow-servers", "workflows", name).out
    assert all(one in served for one in ("greet", "Approval", "Order"))
    assert run("workflow-servers", "forget", name).code == 2  # not without --yes
    forgotten = run("workflow-servers", "forget", name, "--yes")
    assert (forgotten.code, f"{name} is forgotten." in forgotten.err) == (0, True)
    assert run("workflow-servers", "show", name).code == 1


def test_runs(run: Run, server: dict[str, Any], client: Client) -> None:
    name = server["name"]
    listed = run("workflow-runs", "list", "-f", f"server_id={server['id']}", "-f", "status=failed").out
    assert "out of paper" in listed
    assert "goes-on" not in listed
    asked = run("workflow-runs", "cancel", f"{name}-goes-on")
    assert (asked.code, "is asked to cancel it" in asked.err) == (0, True)
    assert "cancelling" in run("workflow-runs", "list", "-f", f"server_id={server['id']}").out
    assert run("workflow-runs", "show", f"{name}-goes-on", "-o", "json").json["cancel"]["state"] == "asked"
    client.post(f"/workflow-servers/{server['id']}/report", {"stopping": True})
    again = run("workflow-runs", "cancel", f"{name}-goes-on", "-o", "json")
    assert (again.code, again.json["server_state"], "when it is back" in again.err) == (0, "stopped", True)
    over = run("workflow-runs", "cancel", f"{name}-over")
    assert (over.code, "run_ended" in over.err) == (1, True)

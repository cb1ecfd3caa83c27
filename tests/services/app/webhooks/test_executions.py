"""The address that an execution was started with hears how it goes, from the app's routes to the receiver."""

import httpx
import pytest

from services.app.webhooks.delivery import Delivery
from shared.jobs.engine import EmbeddedEngine
from tests.services.app.conftest import People
from tests.services.app.flows.conftest import Flows, engine, flows, template
from tests.services.app.webhooks.receiver import Receiver

__all__ = ["engine", "flows"]


@pytest.mark.parametrize(
    ("kind", "schema", "status"), [("object", {"type": "object"}, "COMPLETED"), ("text", "no schema", "FAILED")]
)
async def test_an_executions_address_hears_of_it_in_order(
    flows: Flows,
    engine: EmbeddedEngine,
    receiver: Receiver,
    delivery: Delivery,
    people: People,
    kind: str,
    schema: object,
    status: str,
) -> None:
    task = {"ref": "greet", "type": "json.validate", "input": {"value": {}, "schema": "{{input.schema}}"}}
    inputs = [{"name": "schema", "type": kind}]
    workflow = await flows.create(template(input=inputs, tasks=[task], output=[]))
    manager = await people.add("member", projects={flows.project: "manager"})
    answer: httpx.Response = await flows.client.post(
        "/webhooks/signing-secret", params={"project_id": str(flows.project)}, headers=manager.headers
    )
    body = {"input": {"schema": schema}, "webhook_url": receiver.url("/mine")}
    path = await flows.start(workflow, body)
    ended = await flows.until(path)
    assert ended["status"] == status
    received = await receiver.until(2, "/mine")
    told = [one.verified(answer.json()["secret"]) for one in received]
    assert [one["type"] for one in told] == ["execution.running", f"execution.{ended['status'].lower()}"]
    assert told[-1]["data"]["execution_id"] == ended["execution_id"]
    assert told[-1]["data"]["status"] == ended["status"]

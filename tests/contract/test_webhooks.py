"""Webhooks, schedules and triggers on a whole Stepway: its own loops send and fire."""

import json
from pathlib import Path

from sqlalchemy import text
from standardwebhooks import Webhook

from services.app.schedules.service import SCHEDULES
from shared.clock import now
from tests.contract.running import Stepway
from tests.services.app.webhooks.receiver import running

FLOW = {
    "name": "hello",
    "input": [{"name": "who", "type": "text"}],
    "tasks": [{"ref": "greet", "type": "text.template", "input": {"template": "Hello {{input.who}}"}}],
    "output": [{"name": "said", "type": "text", "value": "{{refs.greet.output.text}}"}],
}
TOLD = ["job.pending", "execution.running", "job.running", "execution.completed", "job.succeeded"]
COMPLETED = TOLD.index("execution.completed")


async def test_what_starts_by_itself_is_told_in_order(tmp_path: Path) -> None:
    async with running() as receiver, Stepway(tmp_path / "data", allow_private_addresses=True) as stepway:
        client = stepway.client
        project = (await client.get("/projects"))["data"][0]["id"]
        hook = await client.post(
            "/webhooks", {"project_id": project, "url": receiver.url("/hook"), "events": ["*"]}, 201
        )
        workflow = (await client.post("/flow/workflows", FLOW, 201))["workflow_id"]

        schedule = await client.post(
            f"/flow/workflows/{workflow}/schedules", {"cron": "0 0 1 1 *", "input": {"who": "clock"}}, 201
        )
        async with stepway.assembly.database.transaction() as session:
            await session.execute(text("UPDATE flow.schedule SET next_at = clock_timestamp()"))
            stepway.assembly.hub.publish_after_commit(session, SCHEDULES)
        by_clock = await receiver.until(len(TOLD), "/hook")
        assert [one.event for one in by_clock] == TOLD
        last = (await client.get(f"/flow/workflows/{workflow}/schedules/{schedule['id']}"))["last"]
        assert last["execution_id"] == by_clock[COMPLETED].verified(hook["secret"])["data"]["execution_id"]

        trigger = await client.post(f"/flow/workflows/{workflow}/triggers", {"mapping": {"who": "sender"}}, 201)
        raw, moment = json.dumps({"sender": "bot"}), now()
        headers = {
            "content-type": "application/json", "webhook-id": "msg_1", "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": Webhook(trigger["secret"]).sign("msg_1", moment, raw),
        }  # fmt: skip
        answer = await client.http.post(trigger["url"], content=raw, headers=headers)
        assert answer.status_code == 202, answer.text
        by_message = (await receiver.until(2 * len(TOLD), "/hook"))[len(TOLD) :]
        ended = by_message[COMPLETED].verified(hook["secret"])
        assert ended["data"]["output"] == {"said": "Hello bot"}
        assert [one.event for one in by_message] == TOLD

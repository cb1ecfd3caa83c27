"""What arrives at a receiver, how often, in what order, and what is recorded of it."""

import asyncio
import json
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from services.app.webhooks import delivery as delivering_module
from services.app.webhooks import secrets
from services.app.webhooks.delivery import Delivery
from services.app.webhooks.outbox import Receiver as To
from services.app.webhooks.outbox import Topic, announce
from services.app.webhooks.sending import Sender
from shared.clock import now
from tests.services.app.webhooks.conftest import Hooks, delivering
from tests.services.app.webhooks.receiver import Answer, Received, Receiver, always, first, hang, well

ROOT = Path(__file__).parents[4]


async def test_a_message_is_signed_and_says_what_happened(hooks: Hooks, receiver: Receiver, delivery: Delivery) -> None:
    webhook = await hooks.subscribe(receiver.url(), "job.*")
    await hooks.announce("job.succeeded", name="ö")
    [received] = await receiver.until(1)
    content = received.verified(webhook["secret"])
    assert content.keys() == {"type", "timestamp", "data"}
    assert (content["type"], content["data"]) == ("job.succeeded", {"name": "ö"})
    assert received.headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        received.verified(secrets.new_secret())
    [delivered] = await hooks.until_ended(webhook["id"])
    assert (delivered["state"], delivered["message_id"], delivered["attempts"]) == ("delivered", received.id, 1)
    assert [(one["status"], one["error"], one["answer"]) for one in delivered["log"]] == [(200, None, "ok")]
    assert webhook["secret"] not in json.dumps(delivered)


async def test_after_a_rotation_both_secrets_verify_for_a_day(
    hooks: Hooks, receiver: Receiver, delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook = await hooks.subscribe(receiver.url())
    rotated = (await hooks.post(f"/webhooks/{webhook['id']}/secret")).json()
    assert rotated["secret"] != webhook["secret"]
    await hooks.announce("job.failed")
    [received] = await receiver.until(1)
    assert received.verified(webhook["secret"]) == received.verified(rotated["secret"])
    day = now() + secrets.OVERLAP
    monkeypatch.setattr(secrets, "now", lambda: day)
    await hooks.announce("job.failed")
    received = (await receiver.until(2))[1]
    received.verified(rotated["secret"])
    with pytest.raises(WebhookVerificationError):
        received.verified(webhook["secret"])


async def test_failures_are_tried_again_with_the_same_message(
    hooks: Hooks, receiver: Receiver, delivery: Delivery
) -> None:
    receiver.behaviours["/hook"] = first(500, 404, 302)
    webhook = await hooks.subscribe(receiver.url())
    await hooks.announce("job.running")
    received = await receiver.until(4)
    assert len({(one.id, one.body) for one in received}) == 1
    [delivered] = await hooks.until_ended(webhook["id"])
    assert [one["status"] for one in delivered["log"]] == [500, 404, 302, 200]
    assert "redirects are not followed" in delivered["log"][2]["error"]


async def test_redirects_are_not_followed(hooks: Hooks, receiver: Receiver, delivery: Delivery) -> None:
    receiver.behaviours["/hook"] = always(307, Location=receiver.url("/elsewhere"))
    webhook = await hooks.subscribe(receiver.url())
    await hooks.announce("job.running")
    [ended] = await hooks.until_ended(webhook["id"])
    assert ended["state"] == "failed"
    assert receiver.at("/elsewhere") == []


async def test_a_message_is_given_up_after_the_last_attempt_and_the_next_one_goes(
    hooks: Hooks, receiver: Receiver, delivery: Delivery
) -> None:
    async def answer(received: Received) -> Answer:
        return Answer(200 if received.event == "job.running" else 503)

    receiver.behaviours["/hook"] = answer
    webhook, topic = await hooks.subscribe(receiver.url()), uuid4()
    await hooks.announce("job.pending", topic, 1)
    await hooks.announce("job.running", topic, 2)
    given_up, delivered = await hooks.until_ended(webhook["id"], 2)
    assert (given_up["state"], given_up["attempts"]) == ("failed", 8)
    assert given_up["log"][-1]["error"] == "The receiver answered 503. Given up after 8 attempts."
    assert delivered["state"] == "delivered"
    assert [one.event for one in receiver.received] == ["job.pending"] * 8 + ["job.running"]


async def test_a_message_is_given_up_when_it_is_old(hooks: Hooks, receiver: Receiver) -> None:
    receiver.behaviours["/hook"] = always(500)
    webhook = await hooks.subscribe(receiver.url())
    await hooks.announce("job.pending")
    await hooks.run("UPDATE platform.webhook_message SET offered_at = now() - interval '73 hours'")
    async with delivering(hooks.context):
        [given_up] = await hooks.until_ended(webhook["id"])
    assert (given_up["state"], given_up["attempts"]) == ("failed", 1)


async def test_messages_of_a_topic_arrive_in_their_order_and_others_do_not_wait(
    hooks: Hooks, receiver: Receiver, delivery: Delivery
) -> None:
    gate = asyncio.Event()

    async def answer(received: Received) -> Answer:
        if received.content["data"]["name"] == "held":
            await gate.wait()
        return Answer()

    receiver.behaviours["/hook"] = answer
    webhook, held, other = await hooks.subscribe(receiver.url()), uuid4(), uuid4()
    for sequence, event in enumerate(("job.pending", "job.running", "job.succeeded"), 1):
        await hooks.announce(event, held, sequence, name="held")
        await hooks.announce(event, other, sequence, name="other")
    received = await receiver.until(4)
    assert sorted(one.content["data"]["name"] for one in received) == ["held", "other", "other", "other"]
    gate.set()
    await hooks.until_ended(webhook["id"], 6)
    for name in ("held", "other"):
        events = [one.event for one in receiver.received if one.content["data"]["name"] == name]
        assert events == ["job.pending", "job.running", "job.succeeded"]


async def test_a_receiver_that_hangs_holds_up_nobody_else(hooks: Hooks, receiver: Receiver, delivery: Delivery) -> None:
    receiver.behaviours["/hangs"] = hang
    await hooks.subscribe(receiver.url("/hangs"), "job.failed")
    webhook = await hooks.subscribe(receiver.url("/well"), "job.succeeded")
    for _ in range(delivering_module.SLOTS + 10):
        await hooks.announce("job.failed")
    await receiver.until(1, "/hangs")
    for _ in range(10):
        await hooks.announce("job.succeeded")
    await hooks.until_ended(webhook["id"], 10)
    assert len(receiver.at("/hangs")) < delivering_module.SLOTS / 2


async def test_a_receiver_that_does_not_answer_in_time_has_failed(hooks: Hooks, receiver: Receiver) -> None:
    hooks.context.settings = hooks.context.settings.model_copy(
        update={"webhook_timeout": 0.2, "webhook_retry_delays": []}
    )
    receiver.behaviours["/hook"] = hang
    webhook = await hooks.subscribe(receiver.url())
    await hooks.announce("job.pending")
    async with delivering(hooks.context):
        [failed] = await hooks.until_ended(webhook["id"])
    assert failed["log"][0]["error"].startswith("The receiver did not answer within 0.2 s.")


async def test_a_receiver_that_is_not_there_has_failed(hooks: Hooks, delivery: Delivery) -> None:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    webhook = await hooks.subscribe(f"http://127.0.0.1:{port}/")
    await hooks.announce("job.pending")
    [failed] = await hooks.until_ended(webhook["id"])
    assert failed["log"][0]["error"] == "The receiver cannot be reached: ConnectError."


async def test_a_receiver_that_is_gone_disables_its_webhook(
    hooks: Hooks, receiver: Receiver, delivery: Delivery
) -> None:
    receiver.behaviours["/hook"] = always(410)
    webhook, topic = await hooks.subscribe(receiver.url()), uuid4()
    await hooks.announce("job.pending", topic, 1)
    await hooks.announce("job.running", topic, 2)
    ended = await hooks.until_ended(webhook["id"], 2)
    assert [one["state"] for one in ended] == ["failed", "failed"]
    assert len(receiver.received) == 1
    shown = await hooks.show(webhook["id"])
    assert shown["enabled"] is False
    assert "410" in shown["reason"]
    await hooks.announce("job.succeeded", topic, 3)
    assert len(await hooks.messages()) == 2
    assert (await hooks.post(f"/webhooks/{webhook['id']}/test")).status_code == 409


async def test_retry_after_is_respected(hooks: Hooks, receiver: Receiver, delivery: Delivery) -> None:
    receiver.behaviours["/hook"] = always(429, Retry_After="3600")
    webhook = await hooks.subscribe(receiver.url())
    await hooks.announce("job.pending")
    await receiver.until(1)
    async with asyncio.timeout(30):
        while not (found := await hooks.deliveries(webhook["id"]))[0]["log"]:
            await asyncio.sleep(0.01)
    rows = await hooks.run("SELECT next_at > now() + interval '50 minutes' AS is_late FROM platform.webhook_message")
    assert [row.is_late for row in rows] == [True]
    assert found[0]["state"] == "pending"


async def test_of_an_answer_only_the_beginning_is_kept(hooks: Hooks, receiver: Receiver, delivery: Delivery) -> None:
    receiver.behaviours["/hook"] = always(200, b"\0" + b"x" * 1_000_000)
    webhook = await hooks.subscribe(receiver.url())
    await hooks.announce("job.pending")
    [delivered] = await hooks.until_ended(webhook["id"])
    assert delivered["log"][0]["answer"] == "\ufffd" + "x" * 1023


async def test_private_addresses_are_refused_unless_they_are_allowed(hooks: Hooks, receiver: Receiver) -> None:
    webhook = await hooks.subscribe(f"http://localhost:{receiver.port}/hook")
    hooks.context.settings = hooks.context.settings.model_copy(
        update={"allow_private_addresses": False, "webhook_retry_delays": []}
    )
    await hooks.announce("job.pending")
    async with delivering(hooks.context):
        [failed] = await hooks.until_ended(webhook["id"])
    assert "loopback" in failed["log"][0]["error"]
    assert receiver.received == []


async def test_a_claim_that_has_run_out_is_somebody_elses(hooks: Hooks, receiver: Receiver) -> None:
    """A process that was taken for dead comes back: the message came twice, with one id, and its record is refused."""
    gate = asyncio.Event()

    async def answer(received: Received) -> Answer:
        if len(receiver.at("/hook")) == 1:
            await gate.wait()
        return Answer(500 if gate.is_set() else 200)

    receiver.behaviours["/hook"] = answer
    webhook, topic = await hooks.subscribe(receiver.url()), uuid4()
    await hooks.announce("job.pending", topic, 1)
    await hooks.announce("job.running", topic, 2)
    stalled = Delivery(hooks.context, Sender(hooks.context.settings))
    [claimed] = await stalled.claim()
    late = asyncio.create_task(stalled.deliver(claimed))
    await receiver.until(1)
    assert await stalled.claim() == []
    await hooks.run("UPDATE platform.webhook_message SET next_at = now() WHERE token IS NOT NULL")
    async with delivering(hooks.context):
        await hooks.until_ended(webhook["id"], 2)
    gate.set()
    await late
    ids = [one.id for one in receiver.received]
    assert len(ids) == 3
    assert ids[0] == ids[1] != ids[2]
    ended = await hooks.deliveries(webhook["id"])
    assert [(one["state"], [entry["status"] for entry in one["log"]]) for one in ended] == [("delivered", [200])] * 2


async def test_a_process_that_is_killed_while_it_sends(
    hooks: Hooks, receiver: Receiver, database_url: str, tmp_path: Path
) -> None:
    """At least once, with one id, and in the order of the topic."""
    receiver.behaviours["/hook"] = hang
    webhook, topic = await hooks.subscribe(receiver.url()), uuid4()
    for sequence, event in enumerate(("job.pending", "job.running", "job.succeeded"), 1):
        await hooks.announce(event, topic, sequence)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.services.app.webhooks.deliverer", database_url, str(tmp_path), cwd=ROOT
    )
    try:
        await receiver.until(1)
    finally:
        child.kill()
        await child.wait()
    receiver.behaviours["/hook"] = well
    await hooks.run("UPDATE platform.webhook_message SET next_at = now() WHERE token IS NOT NULL")
    async with delivering(hooks.context):
        await hooks.until_ended(webhook["id"], 3)
    received = receiver.received
    assert [one.event for one in received] == ["job.pending", "job.pending", "job.running", "job.succeeded"]
    assert received[0].id == received[1].id
    assert received[0].body == received[1].body
    for one in received:
        one.verified(webhook["secret"])


async def test_what_is_under_way_at_the_end_of_a_process_goes_on_at_once(hooks: Hooks, receiver: Receiver) -> None:
    receiver.behaviours["/hook"] = hang
    webhook = await hooks.subscribe(receiver.url())
    await hooks.announce("job.pending")
    async with delivering(hooks.context):
        await receiver.until(1)
    receiver.behaviours["/hook"] = well
    async with delivering(hooks.context):
        [delivered] = await hooks.until_ended(webhook["id"])
    assert delivered["state"] == "delivered"
    assert len({one.id for one in receiver.received}) == 1


async def test_several_processes_share_the_work(hooks: Hooks, receiver: Receiver) -> None:
    webhook = await hooks.subscribe(receiver.url())
    topics = [uuid4() for _ in range(20)]
    for sequence, event in enumerate(("job.pending", "job.running", "job.succeeded"), 1):
        for topic in topics:
            await hooks.announce(event, topic, sequence, about=str(topic))
    async with delivering(hooks.context), delivering(hooks.context), delivering(hooks.context):
        async with asyncio.timeout(60):
            while await hooks.deliveries(webhook["id"], state="pending"):
                await asyncio.sleep(0.05)
    assert len(receiver.received) == len({one.id for one in receiver.received}) == 60
    for topic in topics:
        told = [one.event for one in receiver.received if one.content["data"]["about"] == str(topic)]
        assert told == ["job.pending", "job.running", "job.succeeded"]


async def test_a_message_is_sent_again_on_request(hooks: Hooks, receiver: Receiver, delivery: Delivery) -> None:
    receiver.behaviours["/hook"] = always(500)
    webhook = await hooks.subscribe(receiver.url())
    await hooks.announce("job.pending")
    [failed] = await hooks.until_ended(webhook["id"])
    receiver.behaviours["/hook"] = well
    answer = await hooks.post(f"/webhooks/deliveries/{failed['id']}/redeliver")
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    [delivered] = await hooks.until_ended(webhook["id"])
    assert (delivered["state"], len(delivered["log"])) == ("delivered", 9)
    assert {one.id for one in receiver.received} == {failed["message_id"]}


async def test_a_message_that_waits_for_its_retry_is_sent_at_once_on_request(hooks: Hooks, receiver: Receiver) -> None:
    hooks.context.settings = hooks.context.settings.model_copy(update={"webhook_retry_delays": [3600.0]})
    receiver.behaviours["/hook"] = first(500)
    webhook, topic = await hooks.subscribe(receiver.url()), uuid4()
    await hooks.announce("job.pending", topic, 1)
    await hooks.announce("job.running", topic, 2)
    async with delivering(hooks.context):
        async with asyncio.timeout(30):
            while not (found := await hooks.deliveries(webhook["id"]))[0]["log"]:
                await asyncio.sleep(0.01)
        waiting = await hooks.post(f"/webhooks/deliveries/{found[1]['id']}/redeliver")
        assert waiting.json()["next_at"] is None  # its turn comes after the first
        assert (await hooks.post(f"/webhooks/deliveries/{found[0]['id']}/redeliver")).status_code == 202
        await hooks.until_ended(webhook["id"], 2)
    assert [one.event for one in receiver.received] == ["job.pending", "job.pending", "job.running"]


async def test_an_address_of_its_own_is_signed_with_the_projects_secret(
    hooks: Hooks, receiver: Receiver, delivery: Delivery
) -> None:
    async with hooks.context.database.transaction() as session:
        topic = Topic(hooks.project_id, uuid4(), 1)
        await announce(hooks.context.hub, session, topic, "execution.completed", {}, [To(None, receiver.url("/once"))])
    [received] = await receiver.until(1)
    async with hooks.context.database.transaction() as session:
        [secret] = await secrets.of_project(session, hooks.context.keyring, hooks.project_id)
    assert received.verified(secret)["type"] == "execution.completed"


async def test_deliveries_are_forgotten_after_a_month(hooks: Hooks, receiver: Receiver, delivery: Delivery) -> None:
    webhook = await hooks.subscribe(receiver.url())
    for _ in range(2):
        await hooks.announce("job.pending")
    old, kept = await hooks.until_ended(webhook["id"], 2)
    await hooks.run(
        "UPDATE platform.webhook_message SET ended_at = now() - interval '31 days' WHERE id = CAST(:id AS uuid)",
        id=old["id"],
    )
    await delivering_module.forget(hooks.context)
    assert [one["id"] for one in await hooks.deliveries(webhook["id"])] == [kept["id"]]

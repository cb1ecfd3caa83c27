"""Webhooks as people manage them."""

from typing import Any

import httpx
import pytest

from services.app.identity.rotation import rotate
from services.app.webhooks import secrets, service
from services.app.webhooks.delivery import Delivery
from tests.services.app.conftest import People
from tests.services.app.webhooks.conftest import Hooks
from tests.services.app.webhooks.receiver import Receiver

URL = "https://bots.example/hook"


def refusals(answer: httpx.Response) -> list[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    return [(one["param"], one["message"]) for one in answer.json()["errors"]]


async def test_a_secret_is_shown_once(hooks: Hooks) -> None:
    body = {"project_id": str(hooks.project_id), "url": URL, "events": ["job.*", "job.*", "endpoint.running"]}
    headers = {**hooks.member.headers, "Idempotency-Key": "k"}
    made = await hooks.client.post("/webhooks", json=body, headers=headers)
    webhook = made.json()
    assert webhook["secret"].startswith("whsec_")
    assert webhook["events"] == ["endpoint.running", "job.*"]
    replayed = await hooks.client.post("/webhooks", json=body, headers=headers)
    assert (replayed.json()["id"], replayed.json()["secret"]) == (webhook["id"], None)
    place = made.headers["location"]
    assert "secret" not in (await hooks.client.get(place, headers=headers)).json()
    listed = (await hooks.client.get("/webhooks", headers=headers)).json()["data"]
    assert [(one["id"], "secret" in one) for one in listed] == [(webhook["id"], False)]
    rows = await hooks.run("SELECT sealed FROM platform.webhook")
    assert webhook["secret"].encode() not in rows.scalar_one()
    audited = await hooks.run("SELECT string_agg(details::text, ' ') FROM platform.audit")
    assert webhook["secret"] not in audited.scalar_one()


async def test_a_webhook_is_replaced_and_deleted(hooks: Hooks) -> None:
    webhook = await hooks.subscribe(URL, "job.*")
    path, headers = f"/webhooks/{webhook['id']}", hooks.member.headers
    body = {"url": URL + "2", "events": ["*"], "description": "d", "enabled": False}
    changed = await hooks.client.put(path, json=body, headers={**headers, "If-Match": '"1"'})
    assert {**body, "revision": 2}.items() <= changed.json().items()
    stale = await hooks.client.put(path, json=body, headers={**headers, "If-Match": '"1"'})
    assert stale.status_code == 412
    assert (await hooks.client.delete(path, headers=headers)).status_code == 204
    assert (await hooks.client.get(path, headers=headers)).status_code == 404


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://bots.example/", "only http and https"), ("http://u:p@bots.example/", "user name or password"),
        ("https://bots.example:22/", "port 22"), ("http://169.254.169.254/", "metadata"), ("nothing", "only http"),
    ],
)  # fmt: skip
async def test_where_messages_are_never_sent(hooks: Hooks, url: str, sentence: str) -> None:
    body = {"project_id": str(hooks.project_id), "url": url, "events": ["*"]}
    made = await hooks.client.post("/webhooks", json=body, headers=hooks.member.headers)
    [(param, message)] = refusals(made)
    assert param == "url"
    assert sentence in message
    webhook = await hooks.subscribe(URL)
    changed = await hooks.client.put(
        f"/webhooks/{webhook['id']}", json={"url": url, "events": ["*"]}, headers=hooks.member.headers
    )
    assert refusals(changed) == [(param, message)]


@pytest.mark.parametrize("events", [[], ["job"], ["job.done"], ["*.failed"], ["job.fail*"], ["webhook.test"], [1]])
async def test_events_that_there_are_not(hooks: Hooks, events: list[Any]) -> None:
    body = {"project_id": str(hooks.project_id), "url": URL, "events": events}
    [(param, _)] = refusals(await hooks.client.post("/webhooks", json=body, headers=hooks.member.headers))
    assert param.startswith("events")


async def test_a_project_has_so_many(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST", 2)
    for _ in range(2):
        await hooks.subscribe(URL)
    body = {"project_id": str(hooks.project_id), "url": URL, "events": ["*"]}
    refused = await hooks.client.post("/webhooks", json=body, headers=hooks.member.headers)
    assert (refused.status_code, refused.json()["code"]) == (409, "quota_exceeded")


async def test_a_message_to_try_it(hooks: Hooks, receiver: Receiver, delivery: Delivery) -> None:
    webhook = await hooks.subscribe(receiver.url(), "endpoint.failed")
    sent = await hooks.post(f"/webhooks/{webhook['id']}/test")
    assert (sent.status_code, sent.json()["event"]) == (202, "webhook.test")
    [received] = await receiver.until(1)
    assert received.verified(webhook["secret"])["data"]["webhook_id"] == webhook["id"]
    assert received.id == sent.json()["message_id"]
    await hooks.until_ended(webhook["id"])
    assert [one["event"] for one in await hooks.deliveries(webhook["id"], state="delivered")] == ["webhook.test"]
    assert await hooks.deliveries(webhook["id"], state="failed") == []


async def test_the_signing_secret_of_a_project(hooks: Hooks, people: People) -> None:
    manager = await people.add("member", projects={hooks.project_id: "manager"})
    query = {"project_id": str(hooks.project_id)}
    shown = [
        await hooks.client.post("/webhooks/signing-secret", params=query, headers=manager.headers) for _ in range(2)
    ]
    assert shown[0].json()["secret"].startswith("whsec_")
    assert shown[0].json() != shown[1].json()
    assert shown[0].headers["cache-control"] == "no-store"
    async with hooks.context.database.transaction() as session:
        signing = await secrets.of_project(session, hooks.context.keyring, hooks.project_id)
    assert signing == [one.json()["secret"] for one in reversed(shown)]


async def test_secrets_outlive_a_rotation_of_the_encryption_keys(
    hooks: Hooks, receiver: Receiver, delivery: Delivery
) -> None:
    webhook = await hooks.subscribe(receiver.url())
    keyring = hooks.context.keyring
    await rotate(hooks.context.database, keyring)
    assert len(keyring.key_ids) == 1
    await hooks.announce("job.pending")
    [received] = await receiver.until(1)
    received.verified(webhook["secret"])


async def test_deliveries_of_a_project_by_topic(hooks: Hooks, people: People) -> None:
    await hooks.subscribe(URL)
    await hooks.announce("job.pending")
    await hooks.announce("job.failed")
    [first, _] = await hooks.messages()
    query = {"project_id": str(hooks.project_id), "topic": str(first.topic)}
    found = (await hooks.client.get("/webhooks/deliveries", params=query, headers=hooks.member.headers)).json()
    assert [one["event"] for one in found["data"]] == ["job.pending"]
    stranger = await people.add("member")
    assert (await hooks.client.get("/webhooks/deliveries", headers=stranger.headers)).json()["total"] == 0

"""Flows that are started by signed messages from elsewhere."""

import asyncio
import hashlib
import hmac
import json
from datetime import timedelta
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from services.app.identity.rotation import rotate
from services.app.triggers import receiving
from services.app.triggers.receiving import mapped
from shared.clock import now
from shared.http.ratelimit import RateLimiter
from tests.services.app.flows.conftest import Flows, Json, template

BODY = {"repository": {"name": "x"}, "commits": [{"id": "first"}]}


class Sender:
    """Somebody with a trigger's address and secret, and no key."""

    def __init__(self, flows: Flows, trigger: Json) -> None:
        self.flows, self.trigger = flows, trigger

    def standard(
        self, raw: bytes, id_: str, late: timedelta = timedelta(0), secret: str | None = None
    ) -> dict[str, str]:
        moment = now() - late
        signature = Webhook(secret or self.trigger["secret"]).sign(id_, moment, raw.decode())
        return {
            "webhook-id": id_, "webhook-timestamp": str(int(moment.timestamp())), "webhook-signature": signature,
        }  # fmt: skip

    def github(self, raw: bytes) -> dict[str, str]:
        digest = hmac.new(self.trigger["secret"].encode(), raw, hashlib.sha256).hexdigest()
        return {"X-Hub-Signature-256": f"sha256={digest}"}

    async def post(self, raw: bytes, headers: dict[str, Any], url: str | None = None) -> httpx.Response:
        return await self.flows.client.post(
            url or self.trigger["url"], content=raw, headers={"Content-Type": "application/json", **headers}
        )

    async def send(self, id_: str = "msg_1", body: Json = BODY, **more: Any) -> httpx.Response:
        raw = json.dumps(body).encode()
        return await self.post(raw, self.standard(raw, id_, **more))


async def trigger(flows: Flows, workflow: str, **body: Any) -> Sender:
    answer = await flows.ask("POST", f"/workflows/{workflow}/triggers", body=body)
    assert answer.status_code == 201, answer.text
    return Sender(flows, answer.json())


@pytest.fixture
async def workflow(flows: Flows) -> str:
    return await flows.create(template())


@pytest.fixture
async def sender(flows: Flows, workflow: str) -> Sender:
    return await trigger(flows, workflow, mapping={"who": "repository.name"})


async def count(flows: Flows) -> int:
    return int(await flows.value("SELECT count(*) FROM flow.execution"))


async def test_a_signed_message_starts_an_execution(flows: Flows, workflow: str, sender: Sender) -> None:
    answer = await sender.send()
    assert answer.status_code == 202, answer.text
    shown = await flows.get(f"/workflows/{workflow}/executions/{answer.json()['execution_id']}")
    assert shown["input"] == {"who": "x"}


async def test_the_whole_body_is_an_input(flows: Flows) -> None:
    inputs = [{"name": "body", "type": "object"}]
    tasks = [{"ref": "t", "type": "text.template", "input": {"template": "{{input.body.repository.name}}"}}]
    made = await flows.create({**template(), "input": inputs, "tasks": tasks, "output": []})
    answer = await (await trigger(flows, made)).send()
    shown = await flows.get(f"/workflows/{made}/executions/{answer.json()['execution_id']}")
    assert shown["input"] == {"body": BODY}


async def test_a_message_that_comes_again_starts_nothing(flows: Flows, sender: Sender) -> None:
    answers = [
        await sender.send(),
        await sender.send(),
        *await asyncio.gather(*(sender.send("msg_2") for _ in range(4))),
    ]
    ids = [one.json()["execution_id"] for one in answers]
    assert ids[0] == ids[1]
    assert len(set(ids[2:])) == 1
    assert await count(flows) == 2
    await flows.run("UPDATE flow.arrival SET created_at = now() - interval '25 hours'")
    assert (await sender.send()).json()["execution_id"] not in ids
    await flows.run("UPDATE flow.arrival SET created_at = now() - interval '49 hours'")
    await receiving.forget(flows.context)
    assert await flows.value("SELECT count(*) FROM flow.arrival") == 0


async def test_what_is_not_signed_well_looks_like_what_is_not_there(
    flows: Flows, workflow: str, sender: Sender
) -> None:
    raw = json.dumps(BODY).encode()
    good, minutes = sender.standard(raw, "m"), timedelta(minutes=6)
    other = (await trigger(flows, workflow)).trigger["secret"]
    attempts: list[dict[str, Any]] = [
        {}, {**good, "webhook-id": "n"}, {**good, "webhook-timestamp": "1"}, {**good, "webhook-timestamp": "nan"},
        {**good, "webhook-signature": "v1,AAAA"}, {**good, "webhook-signature": "x"}, {**good, "webhook-signature": b"v1,\xe9"},
        sender.standard(raw, "m", minutes), sender.standard(raw, "m", -minutes), sender.standard(raw, "m", secret=other),
        sender.standard(raw + b" ", "m"), sender.standard(raw, "m" * 300), sender.github(raw),
    ]  # fmt: skip
    refused = [await sender.post(raw, headers) for headers in attempts]
    refused += [await sender.post(raw, good, "/flow/triggers/tr-unknown")]
    path = f"/workflows/{workflow}/triggers/{sender.trigger['id']}"
    await flows.ask("PUT", path, body={"enabled": False})
    refused += [await sender.post(raw, good)]
    assert {one.status_code for one in refused} == {401}
    bodies = [
        {name: value for name, value in one.json().items() if name not in ("request_id", "instance")} for one in refused
    ]
    assert all(one == bodies[0] for one in bodies)
    assert await count(flows) == 0


async def test_messages_as_github_signs_them(flows: Flows, workflow: str) -> None:
    sender = await trigger(flows, workflow, scheme="github", mapping={"who": "commits.0.id"})
    raw = json.dumps(BODY).encode()
    answers = [await sender.post(raw, {**sender.github(raw), "X-GitHub-Delivery": str(n)}) for n in range(2)]
    assert [one.status_code for one in answers] == [202, 202]
    assert await count(flows) == 1
    assert (await sender.post(raw, sender.standard(raw, "m"))).status_code == 401
    assert (await sender.post(raw + b" ", sender.github(raw))).status_code == 401


async def test_inputs_that_do_not_fit_start_nothing_and_may_be_sent_again(flows: Flows, sender: Sender) -> None:
    refused = await sender.send(body={"repository": {}})
    assert (refused.status_code, refused.json()["code"]) == (400, "flow_input_invalid")
    assert (await sender.send()).status_code == 202
    assert await count(flows) == 1


async def test_bodies_that_are_no_json_objects(flows: Flows, sender: Sender) -> None:
    for raw, status in ((b"[]", 400), (b"{", 400), (b'{"a": NaN}', 400), (b"", 400)):
        assert (await sender.post(raw, sender.standard(raw, "m"))).status_code == status


async def test_an_owner_who_may_not_start_it_any_more(flows: Flows, sender: Sender) -> None:
    await flows.run("DELETE FROM platform.member")
    assert (await sender.send()).status_code == 403
    assert await count(flows) == 0


async def test_so_many_messages_in_a_minute(flows: Flows, sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = receiving.Limits()
    limits.addresses = RateLimiter(3, 60.0)
    monkeypatch.setattr(flows.client._transport.app.state, "trigger_limits", limits)  # type: ignore[attr-defined]  # the app
    assert [(await sender.send()).status_code for _ in range(4)] == [202, 202, 202, 429]


async def test_a_secret_is_shown_once_and_outlives_a_rotation_of_keys(
    flows: Flows, workflow: str, sender: Sender
) -> None:
    path = f"/workflows/{workflow}/triggers"
    shown = await flows.get(f"{path}/{sender.trigger['id']}")
    assert {**shown, "secret": sender.trigger["secret"]} == sender.trigger
    assert "secret" not in (await flows.get(path))["data"][0]
    audited = await flows.value("SELECT string_agg(details::text, ' ') FROM platform.audit")
    assert sender.trigger["secret"] not in audited
    assert sender.trigger["url"].split("/")[-1] not in audited
    await rotate(flows.context.database, flows.context.keyring)
    assert len(flows.context.keyring.key_ids) == 1
    assert (await sender.send()).status_code == 202


async def test_a_trigger_is_changed_and_deleted(flows: Flows, workflow: str, sender: Sender) -> None:
    path = f"/workflows/{workflow}/triggers/{sender.trigger['id']}"
    changed = await flows.ask("PUT", path, body={"mapping": {"who": "commits.0.id"}, "description": "d"})
    assert (changed.json()["mapping"], changed.json()["revision"]) == ({"who": "commits.0.id"}, 2)
    assert (await sender.send()).status_code == 202
    assert (await flows.ask("DELETE", path)).status_code == 204
    assert (await sender.send("msg_2")).status_code == 401


@pytest.mark.parametrize("mapping", [{"who": ""}, {"who": "a..b"}, {"1x": "a"}, {"who": "a." * 30 + "b"}, {"who": 1}])
async def test_mappings_that_are_none(flows: Flows, workflow: str, mapping: Json) -> None:
    answer = await flows.ask("POST", f"/workflows/{workflow}/triggers", body={"mapping": mapping})
    assert answer.status_code == 422


def test_places_in_a_body() -> None:
    body = {"a": {"b": [1, {"c": None}]}, "0": "zero"}
    places = {"x": "a.b.1.c", "y": "a.b.7", "z": "a.b.c", "w": "0", "v": "a.b.0", "u": "a.__class__", "t": "a.b.-1"}
    assert mapped(places, body) == {"x": None, "w": "zero", "v": 1}

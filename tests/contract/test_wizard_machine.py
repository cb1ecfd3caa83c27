"""A state machine drives wizards in random order, with repeats, nulls, other steps, triggers, cancels, retries, edits.

Beside it runs a small model of the rules: what a draft holds, what is missing, what each request must answer. Jobs end
at once: a cloud model's is done with its trigger, a hub's model is there or is not.
"""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from tests.contract import actors
from tests.contract.running import Client, Json, Stepway
from tests.hub import Hub

HUB, CLOUD = "local_model_onboarding", "cloud_model_onboarding"
PATHS = {HUB: actors.HUB, CLOUD: actors.CLOUD}
REQUIRED = {HUB: ("modality", "provider_type", "name", "uri"), CLOUD: ("provider_type", "provider_id", "name")}
GOOD, ABSENT = "people/machine", "people/nobody-has-this"
CONTROL = ("workflow_id", "workflow_total_steps", "step_number", "trigger_workflow")


class Draft:
    """What the rules say of one workflow."""

    def __init__(self, kind: str, total: int) -> None:
        self.kind, self.total, self.step = kind, total, 0
        self.id = ""
        self.fields: Json = {}
        self.steps: dict[str, int] = {}
        self.status = "in_progress"
        self.attempts = self.jobs = 0
        self.revision = 0
        self.body: Json | None = None  # the last that was taken

    @property
    def can_change(self) -> bool:
        return self.status in ("in_progress", "failed")

    def changes(self, fields: Json) -> bool:
        return any(self.fields.get(name) != value for name, value in fields.items())

    def take(self, fields: Json, step: int) -> None:
        new = {name for name, value in fields.items() if name not in self.fields or self.fields[name] != value}
        if new or step > self.step:
            self.revision += 1
        if self.changes(fields):
            self.status = "in_progress"
        self.fields |= fields
        self.steps |= dict.fromkeys(new, step)
        self.step = max(self.step, step)

    def missing(self) -> set[str]:
        value = self.fields.get
        found = {name for name in REQUIRED[self.kind] if value(name) is None}
        if self.kind == CLOUD:
            if not value("cloud_model_id") and not value("uri"):
                found.add("cloud_model_id")
            if value("cloud_model_id") and value("uri"):
                found.add("uri")
            if not value("cloud_model_id") and value("uri") and not value("modality"):
                found.add("modality")
        elif value("provider_type") in ("url", "disk"):
            if not value("icon"):
                found.add("icon")
            if value("uri"):
                found.add("uri")  # a hub's id is no URL and no path
        return found

    def job_succeeds(self) -> bool:
        return self.kind == CLOUD or self.fields["uri"] == GOOD


class World:
    """What machines share: the loop, the client, and the ids that may be named."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: Client, provider_id: str, cloud_model_id: str) -> None:
        self.loop, self.client = loop, client
        self.provider_id, self.cloud_model_id = provider_id, cloud_model_id

    def call(self, method: str, path: str, body: Json | None = None) -> tuple[int, Json]:
        async def send() -> tuple[int, Json]:
            answer = await self.client.http.request(method, path, json=body)
            return answer.status_code, answer.json() if answer.content else {}

        return asyncio.run_coroutine_threadsafe(send(), self.loop).result(60)

    def ended(self, job_id: str) -> None:
        asyncio.run_coroutine_threadsafe(self.client.job_ended(job_id), self.loop).result(60)


class Wizards(RuleBasedStateMachine):
    world: World
    drafts = Bundle("drafts")

    def __init__(self) -> None:
        super().__init__()
        self.known: list[Draft] = []
        self.names = [f"machine {uuid4().hex}" for _ in range(8)]
        self.taken: set[str] = set()

    def values(self, draft: Draft, data: st.DataObject) -> Json:
        choices: dict[str, list[Any]] = {
            "name": [*self.names, None], "modality": ["llm", ["llm", "mllm"], None], "author": ["me", "you", None],
            "tags": [[], [{"name": "t", "color": "#000000"}], None], "icon": [actors.ICON, None],
        }  # fmt: skip
        if draft.kind == HUB:
            choices |= {"uri": [ABSENT, ABSENT, GOOD, None], "provider_type": [*["hugging_face"] * 4, "disk", None]}
        else:
            choices |= {
                "provider_type": ["cloud_model", None], "provider_id": [self.world.provider_id, None],
                "cloud_model_id": [self.world.cloud_model_id, None], "uri": ["openai/gpt4", None],
            }  # fmt: skip
        chosen = data.draw(st.lists(st.sampled_from(sorted(choices)), unique=True, max_size=5))
        values = {name: data.draw(st.sampled_from(choices[name])) for name in chosen}
        if data.draw(st.integers(0, 2)):  # often all that is needed, so that jobs are started
            values |= {
                name: data.draw(st.sampled_from(choices[name][:-1]))
                for name in (*REQUIRED[draft.kind], "modality", "uri")
            }
            values |= {"cloud_model_id": None} if draft.kind == CLOUD else {}
        return values

    @rule(target=drafts, kind=st.sampled_from([HUB, CLOUD]), total=st.integers(6, 8), data=st.data())
    def begin(self, kind: str, total: int, data: st.DataObject) -> Draft:
        draft = Draft(kind, total)
        step = data.draw(st.integers(1, total))
        fields, trigger = self.values(draft, data), data.draw(st.booleans())
        body = {"workflow_total_steps": total, "step_number": step, "trigger_workflow": trigger, **fields}
        self.send(draft, body)
        if not draft.id:  # refused whole; begun again without what was wrong
            self.send(draft, {"workflow_total_steps": total, "step_number": step})
        self.known.append(draft)
        return draft

    @rule(draft=drafts, data=st.data(), trigger=st.booleans())
    def go_on(self, draft: Draft, data: st.DataObject, trigger: bool) -> None:
        step = data.draw(st.integers(1, draft.total))
        self.send(
            draft,
            {"workflow_id": draft.id, "step_number": step, "trigger_workflow": trigger, **self.values(draft, data)},
        )

    @rule(draft=drafts)
    def repeat(self, draft: Draft) -> None:
        if draft.body is not None:
            self.send(draft, {**draft.body, "workflow_id": draft.id, "workflow_total_steps": None})

    @rule(draft=drafts, sure=st.integers(0, 3))
    def cancel(self, draft: Draft, sure: int) -> None:
        if sure < 3 and draft.status == "in_progress":
            return  # most drafts live on
        status, answer = self.world.call("POST", f"/workflows/{draft.id}/cancel")
        if draft.status in ("in_progress", "cancelled"):
            draft.revision += draft.status == "in_progress"
            draft.status = "cancelled"
            assert (status, answer["status"]) == (200, "cancelled")
        else:
            assert (status, answer["code"]) == (409, "workflow_finished")

    @rule(draft=drafts)
    def retry(self, draft: Draft) -> None:
        status, answer = self.world.call("POST", f"/workflows/{draft.id}/retry")
        if draft.status != "failed":
            assert (status, answer["code"]) == (409, "not_retryable")
        elif draft.fields["name"] in self.taken:
            assert (status, answer["code"]) == (409, "name_taken")
        else:
            assert status == 200, answer
            assert (answer["status"], answer["reason"], answer["job"]["id"]) == (
                "in_progress",
                None,
                answer["job"]["id"],
            )
            draft.attempts += 1
            assert answer["job"]["attempt"] == draft.attempts
            draft.revision += 2  # it runs, and fails
            self.world.ended(answer["job"]["id"])

    @rule(draft=consumes(drafts))
    def delete(self, draft: Draft) -> None:
        status, answer = self.world.call("DELETE", f"/workflows/{draft.id}")
        if draft.status == "in_progress" and not draft.jobs:
            assert status == 204
            self.known.remove(draft)
            assert self.world.call("GET", f"/workflows/{draft.id}")[0] == 404
        else:
            assert (status, answer["code"]) == (409, "not_a_draft")

    def send(self, draft: Draft, body: Json) -> None:
        status, answer = self.world.call("POST", PATHS[draft.kind], body)
        fields = {name: value for name, value in body.items() if name not in CONTROL}
        step, trigger = body["step_number"], bool(body.get("trigger_workflow"))
        expected = self.expect(draft, fields, trigger)
        assert (status, answer.get("code")) == expected, answer
        if expected == (200, None) or (trigger and "workflow" in answer):
            draft.body = body
            self.taken_over(draft, fields, step, trigger, answer if status == 200 else answer["workflow"])

    def expect(self, draft: Draft, fields: Json, trigger: bool) -> tuple[int, str | None]:
        changes = draft.changes(fields)
        if changes and not draft.can_change:
            return 409, "workflow_finished"
        if not draft.can_change or (draft.status == "failed" and not changes):
            return 200, None
        merged = {**draft.fields, **fields}
        if (
            draft.kind == HUB
            and merged.get("provider_type") == "disk"
            and fields.get("uri") not in (None, draft.fields.get("uri"))
        ):
            return 422, "validation_failed"
        name = fields.get("name")
        if not trigger:
            return (409, "name_taken") if name in self.taken and name != draft.fields.get("name") else (200, None)
        later = Draft(draft.kind, draft.total)
        later.fields = merged
        if later.missing():
            return 422, "missing_fields"
        return (409, "name_taken") if merged["name"] in self.taken else (200, None)

    def taken_over(self, draft: Draft, fields: Json, step: int, trigger: bool, shown: Json) -> None:
        draft.id = draft.id or shown["workflow_id"]
        assert shown["workflow_id"] == draft.id
        if not draft.can_change or (draft.status == "failed" and not draft.changes(fields)):
            return
        draft.take(fields, step)
        started = trigger and not draft.missing() and draft.fields["name"] not in self.taken
        if not started:
            return
        draft.jobs, draft.attempts = draft.jobs + 1, 1
        draft.revision += 2  # triggered, and ended
        self.world.ended(shown["job"]["id"])
        if draft.job_succeeds():
            draft.status, draft.step = "completed", draft.total
            self.taken.add(draft.fields["name"])
        else:
            draft.status = "failed"

    @invariant()
    def what_is_shown_is_what_the_rules_say(self) -> None:
        for draft in self.known[-3:]:
            status, shown = self.world.call("GET", f"/workflows/{draft.id}")
            assert status == 200
            assert shown["status"] == draft.status
            assert (shown["current_step"], shown["total_steps"]) == (draft.step, draft.total)
            assert {name: shown["workflow_steps"][name] for name in draft.fields} == draft.fields
            assert shown["field_steps"] == draft.steps
            assert shown["revision"] == draft.revision
            missing = draft.missing() if draft.status in ("in_progress", "failed") else set()
            assert {one["field"] for one in shown["missing"]} == missing
            assert (shown["job"] is None) == (draft.jobs == 0)
            assert (shown["result"] is not None) == (draft.status == "completed")
            assert (shown["reason"] is not None) == (draft.status == "failed")
            if draft.jobs:
                assert shown["job"]["attempt"] == draft.attempts
                listed = self.world.call("GET", f"/jobs?workflow_id={draft.id}")[1]
                assert listed["total"] == draft.jobs

    def teardown(self) -> None:
        for draft in self.known:
            if draft.status == "in_progress":
                self.world.call("POST", f"/workflows/{draft.id}/cancel")


@pytest.mark.timeout(900)
async def test_wizards_follow_the_rules_in_any_order(stepway: Stepway, client: Client, hub: Hub) -> None:
    actors.publish(hub, GOOD)
    chosen = (await client.get("/models", source="catalog"))["data"][0]
    world = World(asyncio.get_running_loop(), client, chosen["provider_id"], chosen["id"])
    machine = type("Machine", (Wizards,), {"world": world})
    bounds = settings(
        max_examples=30, stateful_step_count=25, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    await asyncio.to_thread(run_state_machine_as_test, machine, settings=bounds)

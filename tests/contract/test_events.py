"""One sequence of events per workflow, over steps, jobs and retries; and one per job (rules 5 and 12)."""

import asyncio
from uuid import uuid4

import pytest

from tests.contract import actors
from tests.contract.actors import CLOUD, HUB, begin, go_on, unique
from tests.contract.running import Client, Event, Json, Stepway
from tests.hub import Hub

JOB_MEMBERS = {
    "object", "id", "kind", "state", "percent", "eta_seconds", "attempt", "steps", "error", "result", "workflow_id",
    "resource", "project_id", "created_at", "started_at", "ended_at",
}  # fmt: skip
STEP_MEMBERS = {"key", "title", "state", "percent", "message", "attempt", "started_at", "ended_at", "error"}


async def all_of(client: Client, workflow: Json, after: int | None = None) -> list[Event]:
    events = await client.events(f"/workflows/{workflow['workflow_id']}/events", after)
    assert events is not None
    return events


def check_sequence(events: list[Event], first: int = 1) -> None:
    assert [event.id for event in events] == list(range(first, first + len(events)))
    for event in events:
        assert event.type in ("workflow", "job", "step", "end")
        if event.type == "job":
            assert set(event.data) == JOB_MEMBERS
        elif event.type == "step":
            assert set(event.data) == STEP_MEMBERS | {"job_percent"}
            assert 0 <= event.data["job_percent"] <= 100


async def test_the_events_of_a_failed_and_retried_workflow_are_one_sequence(client: Client, hub: Hub) -> None:
    failed, name = await actors.failed_import(client)
    events = await all_of(client, failed)
    check_sequence(events)
    assert [event.type for event in events[-3:]] == ["job", "workflow", "end"]
    assert next(event for event in events if event.type == "workflow").data["status"] == "in_progress"
    assert events[-2].data == events[-1].data == failed
    path = f"/workflows/{failed['workflow_id']}/events"
    assert await client.events(path, events[-1].id) is None  # ended and drained: 204
    assert await client.events(path, events[-1].id - 1) == events[-1:]

    actors.publish(hub, name)
    following = asyncio.create_task(client.events(path, events[-1].id - 1))
    ended = await client.ended(await client.post(f"/workflows/{failed['workflow_id']}/retry"))
    assert ended["status"] == "completed"
    whole = await all_of(client, failed)
    check_sequence(whole)
    assert whole[: len(events)] == events
    assert whole[-1].type == "end"
    assert whole[-1].data == whole[-2].data == ended
    rest = await all_of(client, failed, events[-1].id)
    check_sequence(rest, events[-1].id + 1)
    assert rest == whole[len(events) :]
    again = next(event for event in rest if event.type == "workflow")
    assert (again.data["status"], again.data["reason"], again.data["job"]["attempt"]) == ("in_progress", None, 2)
    seen = await following
    assert seen is not None
    assert whole[len(events) - 1 :][: len(seen)] == seen
    assert await client.events(path, whole[-1].id) is None


async def test_every_workflow_event_is_what_the_step_answered_and_what_get_shows(client: Client, hub: Hub) -> None:
    answers = [await begin(client, HUB, modality="llm", proprietary_credential_id=await actors.credential(client))]
    hub.tokens.add(actors.HUB_TOKEN)
    for number, fields in (
        (2, {"provider_type": "hugging_face"}), (3, {"name": unique("e"), "uri": actors.publish(hub)}), (3, {}),
        (4, {"trigger_workflow": True}),
    ):  # fmt: skip
        answer = await go_on(client, HUB, answers[0], number, **fields)
        if not fields.get("trigger_workflow"):
            assert await client.get(f"/workflows/{answer['workflow_id']}") == answer
        answers.append(answer)
    ended = await client.ended(answers[-1])
    events = await all_of(client, ended)
    check_sequence(events)
    told = [event.data for event in events if event.type == "workflow"]
    assert told == [answers[0], answers[1], answers[2], answers[4], ended]
    assert told[-1]["workflow_steps"]["proprietary_credential"]["name"]


async def test_the_sequence_of_a_job_that_is_done_at_once_ends(client: Client) -> None:
    done = await begin(
        client, CLOUD, provider_type="cloud_model", provider_id=(await actors.provider(client))["id"], name=unique("c"),
        uri="openai/gpt4", modality="llm", trigger_workflow=True,
    )  # fmt: skip
    events = await all_of(client, done)
    check_sequence(events)
    assert [event.type for event in events] == ["job", "workflow", "job", "workflow", "end"]
    assert [event.data["status"] for event in events if event.type == "workflow"] == ["in_progress", "completed"]
    assert events[-1].data == done
    assert await client.events(f"/workflows/{done['workflow_id']}/events", events[-1].id) is None


async def test_a_job_has_its_own_sequence(client: Client, hub: Hub) -> None:
    ended = await client.ended(await actors.import_hub(client, actors.publish(hub)))
    path = f"/jobs/{ended['job']['id']}/events"
    events = await client.events(path)
    assert events is not None
    check_sequence(events)
    assert {event.type for event in events} == {"job", "step"}
    assert events[-1].data == ended["job"] == await client.get(f"/jobs/{ended['job']['id']}")
    assert await client.events(path, events[-1].id) is None
    middle = events[len(events) // 2].id
    assert await client.events(path, middle) == events[middle:]
    topic = [event for event in await all_of(client, ended) if event.type in ("job", "step")]
    assert [event.data for event in topic] == [event.data for event in events]


async def test_who_has_seen_more_than_there_is_gets_all_of_it(client: Client, hub: Hub) -> None:
    """A reader from another history, as before the restore of an older database, must not wait in silence."""
    ended = await client.ended(await actors.import_hub(client, actors.publish(hub)))
    for path in (f"/jobs/{ended['job']['id']}/events", f"/workflows/{ended['workflow_id']}/events"):
        events = await client.events(path)
        assert events
        assert await client.events(path, events[-1].id + 1) == await client.events(path, 10**17) == events
        assert await client.events(path, events[-1].id) is None


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 30, "１"])
async def test_a_strange_last_event_id_is_400(client: Client, value: str) -> None:
    draft = await begin(client, HUB)
    headers = {b"Last-Event-ID": value.encode()}
    answer = await client.http.get(f"/workflows/{draft['workflow_id']}/events", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def readers_are_open(stepway: Stepway, count: int) -> None:
    slots = stepway.assembly.app.state.stream_slots
    while sum(slots._open.values()) < count:
        await asyncio.sleep(0.01)


async def test_many_follow_one_workflow_to_its_end(stepway: Stepway, client: Client, hub: Hub) -> None:
    with actors.held(hub):
        started = await actors.import_hub(client, actors.publish(hub))
        readers = [asyncio.create_task(all_of(client, started)) for _ in range(20)]
        await readers_are_open(stepway, 20)
    found = await asyncio.gather(*readers)
    assert all(events == found[0] for events in found)
    assert found[0][-1].type == "end"


async def test_a_deleted_draft_lets_go_of_those_who_follow_it(client: Client) -> None:
    draft = await begin(client, HUB)
    path = f"/workflows/{draft['workflow_id']}/events"
    async with client.http.stream("GET", path) as answer:
        lines = answer.aiter_lines()
        async for line in lines:
            if line.startswith("event: workflow"):
                break
        await client.delete(f"/workflows/{draft['workflow_id']}")
        rest = [line async for line in lines]
    assert "event: end" in rest
    assert (await client.http.get(path)).status_code == 404


async def test_waiting_for_a_job(client: Client, hub: Hub) -> None:
    with actors.held(hub):
        started = await actors.import_hub(client, actors.publish(hub))
        path = f"/jobs/{started['job']['id']}"
        assert (await client.get(path, wait=0.2))["state"] in ("pending", "running")
        waiting = asyncio.create_task(client.get(path, wait=30))
        await client.get(path)
    assert (await waiting)["state"] == "succeeded"
    for value in ("61", "-1", "nan", "inf", "x"):
        assert (await client.http.get(path, params={"wait": value})).status_code == 400
    assert (await client.http.get(f"/jobs/{uuid4()}")).status_code == 404


async def test_jobs_are_their_peoples(stepway: Stepway, client: Client, hub: Hub) -> None:
    project_id = await actors.project(client)
    _, owner = await stepway.person("member", {project_id: "member"})
    _, reader = await stepway.person("member", {project_id: "viewer"})
    _, viewer = await stepway.person("viewer", {project_id: "member"})
    _, stranger = await stepway.person("member")
    with actors.held(hub):
        started = await actors.import_hub(owner, actors.publish(hub), project_id=project_id)
        path = f"/jobs/{started['job']['id']}"
        for action in (path, f"{path}/events"):
            assert (await stranger.http.get(action)).status_code == 404
        for action in ("cancel", "retry"):
            await stranger.refused(f"{path}/{action}", None, 404, "not_found")
            await reader.refused(f"{path}/{action}", None, 403, "not_owner")
            await viewer.refused(f"{path}/{action}", None, 403, "forbidden")
        assert (await reader.get(path))["id"] == started["job"]["id"]
        assert started["job"]["id"] not in {one["id"] for one in (await stranger.get("/jobs"))["data"]}
        await owner.refused(f"{path}/retry", None, 409, "not_retryable")
        cancelled = await owner.post(f"{path}/cancel")
        assert cancelled["state"] in ("cancelling", "cancelled")
        assert (await owner.ended(started))["status"] == "cancelled"
        assert (await owner.post(f"{path}/cancel"))["state"] == "cancelled"

"""Triggers, repeats, failures, retries and cancels; the crowd that wants the same thing (rules 2, 5, 6, 7, 15)."""

import asyncio
from uuid import uuid4

import pytest

from tests.contract import actors
from tests.contract.actors import CLOUD, DEPLOY, HUB, SCAN, begin, go_on, unique
from tests.contract.running import FINAL, Client, Json, Stepway
from tests.hub import Hub


@pytest.fixture(scope="module")
async def scanned(stepway: Stepway) -> Json:
    """A model that may be deployed."""
    model = await actors.disk_model(stepway.client)
    assert (await actors.scan(stepway.client, model["id"]))["result"]["status"] == "safe"
    return model


async def test_a_repeated_trigger_gives_the_same_job(client: Client, hub: Hub) -> None:
    with actors.held(hub):
        first = await actors.import_hub(client, actors.publish(hub))
        assert (first["status"], first["message"]) == ("in_progress", "The job has been started.")
        assert first["missing"] == []
        name = first["workflow_steps"]["name"]
        again = await go_on(client, HUB, first, 1, name=name, trigger_workflow=True)
        assert again["job"]["id"] == first["job"]["id"]
        assert again["revision"] == first["revision"]
        cleared = await go_on(client, HUB, first, 1, description=None)
        assert cleared["revision"] == first["revision"]
        onward = await go_on(client, HUB, first, 5)
        assert (onward["current_step"], onward["revision"]) == (5, first["revision"] + 1)
        for fields in ({"name": "another"}, {"author": "x"}, {"name": None}):
            problem = await client.refused(
                HUB, {"workflow_id": first["workflow_id"], "step_number": 6, **fields}, 409, "workflow_locked"
            )
            assert problem["job_id"] == first["job"]["id"]
        assert (await client.get(f"/workflows/{first['workflow_id']}"))["current_step"] == 5
    ended = await client.ended(first)
    assert (ended["status"], ended["current_step"]) == ("completed", 6)
    assert await go_on(client, HUB, first, 2, name=name, trigger_workflow=True) == ended
    body = {"workflow_id": first["workflow_id"], "step_number": 1, "name": "another"}
    await client.refused(HUB, body, 409, "workflow_finished")
    await client.refused(f"/workflows/{first['workflow_id']}/cancel", None, 409, "workflow_finished")
    await client.refused(f"/workflows/{first['workflow_id']}/retry", None, 409, "not_retryable")
    await client.refused(f"/jobs/{first['job']['id']}/cancel", None, 409, "job_finished")
    assert (await client.http.delete(f"/workflows/{first['workflow_id']}")).status_code == 409


async def test_a_cloud_model_has_a_job_too(client: Client) -> None:
    done = await begin(
        client, CLOUD, provider_type="cloud_model", provider_id=(await actors.provider(client))["id"], name=unique("c"),
        uri="openai/gpt4", modality=["llm", "mllm"], trigger_workflow=True,
    )  # fmt: skip
    assert (done["status"], done["job"]["state"], done["current_step"]) == ("completed", "succeeded", 6)
    assert done["job"] == await client.get(f"/jobs/{done['job']['id']}")
    assert done["links"]["job"] == f"/jobs/{done['job']['id']}"
    assert done["workflow_steps"]["modality"] == ["llm", "mllm"]
    assert done == await client.get(f"/workflows/{done['workflow_id']}")
    assert await go_on(client, CLOUD, done, 1, trigger_workflow=True) == done


async def test_fifty_triggers_at_once_start_one_job(client: Client, hub: Hub) -> None:
    with actors.held(hub):
        fields: Json = {
            "modality": "llm",
            "provider_type": "hugging_face",
            "name": unique("t"),
            "uri": actors.publish(hub),
        }
        draft = await begin(client, HUB, **fields)
        body = {"workflow_id": draft["workflow_id"], "step_number": 4, "trigger_workflow": True}
        answers = await asyncio.gather(*(client.post(HUB, body) for _ in range(50)))
        assert len({answer["job"]["id"] for answer in answers}) == 1
        assert {answer["status"] for answer in answers} == {"in_progress"}
        listed = await client.get("/jobs", workflow_id=draft["workflow_id"])
        assert listed["total"] == 1
    assert (await client.ended(answers[0]))["status"] == "completed"


async def test_fifty_endpoints_of_one_name_leave_one(client: Client, scanned: Json) -> None:
    project_id = await actors.project(client)
    name = unique("Crowd Of")
    spellings = [name, name.lower(), name.replace(" ", "-"), name.upper(), f" {name}!"]
    drafts = await asyncio.gather(
        *(
            begin(
                client,
                DEPLOY,
                project_id=project_id,
                model_id=scanned["id"],
                endpoint_name=spellings[count % 5],
                deploy_config=actors.CONFIG,
            )
            for count in range(50)
        )
    )
    cluster = await actors.machine(client)
    bodies = [
        {"workflow_id": draft["workflow_id"], "step_number": 5, "cluster_id": cluster, "trigger_workflow": True}
        for draft in drafts
    ]
    answers = await asyncio.gather(*(client.http.post(DEPLOY, json=body) for body in bodies))
    codes = [answer.status_code for answer in answers]
    assert (codes.count(200), codes.count(409)) == (1, 49), {
        answer.text for answer in answers if answer.status_code >= 500
    }
    refused = [answer.json() for answer in answers if answer.status_code == 409]
    assert {one["code"] for one in refused} == {"name_taken"}
    assert {(one["errors"][0]["param"], one["errors"][0]["step"]) for one in refused} == {("endpoint_name", 3)}
    assert all(one["workflow"]["workflow_steps"]["cluster_id"] == cluster for one in refused)
    winner = next(answer.json() for answer in answers if answer.status_code == 200)
    assert (await client.get("/endpoints", project_id=project_id))["total"] == 1
    # the name is reserved while the job runs, at the step that sends it too
    body = {"workflow_total_steps": 6, "step_number": 3, "project_id": project_id, "endpoint_name": name}
    problem = await client.refused(DEPLOY, body, 409, "name_taken")
    assert "workflow" not in problem
    cancelled = await client.post(f"/workflows/{winner['workflow_id']}/cancel")
    ended = await client.ended(cancelled)
    assert ended["status"] == "cancelled", ended
    assert (await begin(client, DEPLOY, project_id=project_id, endpoint_name=name))["status"] == "in_progress"
    elsewhere = await begin(client, DEPLOY, project_id=await actors.project(client), endpoint_name=name)
    assert elsewhere["workflow_steps"]["endpoint_name"] == name


# ---- failures


async def test_a_failure_says_why_and_a_retry_runs_the_same_job_again(client: Client, hub: Hub) -> None:
    failed, name = await actors.failed_import(client)
    job = failed["job"]
    assert (job["state"], job["attempt"], job["error"]["step"]) == ("failed", 1, "validate_access")
    title = next(step["title"] for step in job["steps"] if step["key"] == "validate_access")
    assert failed["reason"] == f"{title}: {job['error']['message']}"
    assert failed["result"] is None
    sent = failed["workflow_steps"]["name"]
    assert await go_on(client, HUB, failed, 6, name=sent, trigger_workflow=True) == failed
    actors.publish(hub, name)
    retried = await client.post(f"/workflows/{failed['workflow_id']}/retry")
    assert (retried["status"], retried["reason"], retried["job"]["id"]) == ("in_progress", None, job["id"])
    assert retried["job"]["attempt"] == 2
    await client.post(f"/workflows/{failed['workflow_id']}/retry", status=409)
    ended = await client.ended(retried)
    assert (ended["status"], ended["reason"], ended["job"]["attempt"]) == ("completed", None, 2)


async def test_an_edit_of_a_failed_workflow_makes_it_a_draft_again(client: Client, hub: Hub) -> None:
    failed, _ = await actors.failed_import(client)
    edited = await go_on(client, HUB, failed, 3, uri=actors.publish(hub))
    assert (edited["status"], edited["reason"], edited["job"]["state"]) == ("in_progress", None, "failed")
    path = f"/workflows/{failed['workflow_id']}"
    await client.refused(f"{path}/retry", None, 409, "not_retryable")
    await client.refused(f"/jobs/{failed['job']['id']}/retry", None, 409, "not_retryable")
    assert (await client.get(path)) == edited
    started = await go_on(client, HUB, failed, 4, trigger_workflow=True)
    assert started["job"]["id"] != failed["job"]["id"]
    await client.refused(f"/jobs/{failed['job']['id']}/retry", None, 409, "not_retryable")
    ended = await client.ended(started)
    assert ended["status"] == "completed"
    assert (await client.get("/jobs", workflow_id=failed["workflow_id"]))["total"] == 2


async def test_a_failed_workflow_is_edited_and_triggered_in_one_step(client: Client, hub: Hub) -> None:
    failed, _ = await actors.failed_import(client)
    started = await go_on(client, HUB, failed, 4, uri=actors.publish(hub), trigger_workflow=True)
    assert started["job"]["id"] != failed["job"]["id"]
    assert (await client.ended(started))["status"] == "completed"


async def test_a_reopened_workflow_can_be_cancelled(client: Client) -> None:
    failed, _ = await actors.failed_import(client)
    await go_on(client, HUB, failed, 3, author="x")
    cancelled = await client.post(f"/workflows/{failed['workflow_id']}/cancel")
    assert cancelled["status"] == "cancelled"
    assert await client.post(f"/workflows/{failed['workflow_id']}/cancel") == cancelled


async def test_a_model_that_was_deleted_is_not_brought_back_by_a_retry(client: Client) -> None:
    failed, _ = await actors.failed_import(client)
    model_id = failed["job"]["resource"]["id"]
    await client.delete(f"/models/{model_id}")
    await client.refused(f"/workflows/{failed['workflow_id']}/retry", None, 409, "not_retryable")
    await client.refused(f"/jobs/{failed['job']['id']}/retry", None, 409, "not_retryable")
    assert (await client.http.get(f"/models/{model_id}")).status_code == 404


async def test_a_retry_whose_name_was_taken_meanwhile(client: Client, hub: Hub) -> None:
    failed, name = await actors.failed_import(client)
    other = await client.ended(
        await actors.import_hub(client, actors.publish(hub), name=failed["workflow_steps"]["name"])
    )
    assert other["status"] == "completed"  # failed ones free their names
    actors.publish(hub, name)
    await client.refused(f"/workflows/{failed['workflow_id']}/retry", None, 409, "name_taken")
    await client.refused(f"/jobs/{failed['job']['id']}/retry", None, 409, "name_taken")
    assert (await client.get(f"/workflows/{failed['workflow_id']}"))["status"] == "failed"
    await client.delete(f"/models/{other['result']['id']}")
    assert (await client.ended(await client.post(f"/workflows/{failed['workflow_id']}/retry")))["status"] == "completed"


# ---- cancels


async def test_a_draft_is_cancelled_and_stays_so(client: Client) -> None:
    draft = await begin(client, HUB, modality="llm")
    path = f"/workflows/{draft['workflow_id']}"
    cancelled = await client.post(f"{path}/cancel")
    assert (cancelled["status"], cancelled["job"], cancelled["missing"]) == ("cancelled", None, [])
    assert await client.post(f"{path}/cancel") == cancelled == await client.get(path)
    assert await go_on(client, HUB, draft, 1, modality="llm") == cancelled
    assert await go_on(client, HUB, draft, 6, trigger_workflow=True) == cancelled
    body = {"workflow_id": draft["workflow_id"], "step_number": 1, "modality": "embedding"}
    await client.refused(HUB, body, 409, "workflow_finished")
    assert (await client.http.delete(path)).json()["code"] == "not_a_draft"


async def test_a_running_job_is_cancelled_and_leaves_its_name(client: Client, hub: Hub) -> None:
    with actors.held(hub):
        started = await actors.import_hub(client, actors.publish(hub))
        name = started["workflow_steps"]["name"]
        body = {"workflow_total_steps": 6, "step_number": 3, "name": name}
        await client.refused(HUB, body, 409, "name_taken")
        path = f"/workflows/{started['workflow_id']}/cancel"
        answers = await asyncio.gather(*(client.post(path) for _ in range(5)))
        assert {answer["job"]["state"] for answer in answers} <= {"cancelling", "cancelled"}
        ended = await client.ended(started)
    assert (ended["status"], ended["job"]["state"], ended["result"]) == ("cancelled", "cancelled", None)
    assert await client.post(path) == ended
    await client.refused(f"/workflows/{started['workflow_id']}/retry", None, 409, "not_retryable")
    await begin(client, HUB, step=3, name=name)


async def test_a_draft_is_deleted_once(client: Client) -> None:
    draft = await begin(client, HUB)
    path = f"/workflows/{draft['workflow_id']}"
    await client.delete(path)
    for answer in (
        await client.http.delete(path),
        await client.http.get(path),
        await client.http.post(f"{path}/cancel"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    body = {"workflow_id": draft["workflow_id"], "step_number": 1}
    await client.refused(HUB, body, 404, "not_found")


async def test_deletes_cancels_steps_and_triggers_at_once(client: Client, hub: Hub) -> None:
    """Whoever comes first wins; nobody sees a fault."""
    uri = actors.publish(hub)
    for _ in range(5):
        fields: Json = {"modality": "llm", "provider_type": "hugging_face", "name": unique("r"), "uri": uri}
        draft = await begin(client, HUB, **fields)
        path = f"/workflows/{draft['workflow_id']}"
        step = {"workflow_id": draft["workflow_id"], "step_number": 3}
        answers = await asyncio.gather(
            client.http.delete(path),
            *(client.http.post(f"{path}/cancel") for _ in range(3)),
            *(client.http.post(HUB, json={**step, "author": str(count)}) for count in range(3)),
            *(client.http.post(HUB, json={**step, "trigger_workflow": True}) for _ in range(3)),
            client.http.post(f"{path}/retry"),
        )
        assert {answer.status_code for answer in answers} <= {200, 204, 404, 409}, [answer.text for answer in answers]
        shown = await client.http.get(path)
        if shown.status_code == 200 and shown.json()["job"] is not None:
            assert (await client.job_ended(shown.json()["job"]["id"]))["state"] in FINAL


async def test_steps_readers_and_retries_while_jobs_run_and_end(client: Client, hub: Hub) -> None:
    """Whoever locks the job, its topic and its workflow does so in one order: nobody waits for ever, nobody sees a fault."""
    started = [await actors.import_hub(client, actors.publish(hub)) for _ in range(6)]
    seen: set[int] = set()

    async def pester(workflow: Json, count: int) -> None:
        path, job = f"/workflows/{workflow['workflow_id']}", f"/jobs/{workflow['job']['id']}"
        step = {
            "workflow_id": workflow["workflow_id"],
            "step_number": 1 + count % 6,
            "trigger_workflow": count % 2 == 0,
        }
        for answer in (
            await client.http.post(HUB, json=step),
            await client.http.post(f"{path if count % 3 else job}/retry"),
            await client.http.post(HUB, json={**step, "author": str(count)}),
            await client.http.get(path),
        ):
            seen.add(answer.status_code)

    await asyncio.gather(*(pester(workflow, count) for count in range(8) for workflow in started))
    assert seen <= {200, 409}
    for workflow in started:
        assert (await client.ended(workflow))["status"] == "completed"


# ---- Idempotency-Key


async def test_every_post_that_creates_or_triggers_takes_an_idempotency_key(client: Client, hub: Hub) -> None:
    model = await actors.disk_model(client)
    failed, _ = await actors.failed_import(client)
    draft = await begin(client, HUB)
    requests: list[tuple[str, Json | None]] = [
        (HUB, {"workflow_total_steps": 6, "step_number": 1, "modality": "llm"}),
        (CLOUD, {"workflow_total_steps": 6, "step_number": 1}),
        (DEPLOY, {"workflow_total_steps": 6, "step_number": 1}),
        (actors.CLUSTER, {"workflow_total_steps": 3, "step_number": 1}),
        (actors.ADD, {"workflow_total_steps": 5, "step_number": 1}),
        (SCAN, {"workflow_total_steps": 3, "step_number": 1, "model_id": model["id"], "trigger_workflow": True}),
        (f"/workflows/{draft['workflow_id']}/cancel", None),
        (f"/workflows/{failed['workflow_id']}/retry", None),
        (f"/models/{model['id']}/scan-overrides", {"reason": "because"}),
        ("/projects", {"name": unique("once")}),
        (HUB, {"workflow_total_steps": 6, "step_number": 9}),  # a refusal is kept too
    ]
    for path, body in requests:
        headers = {"Idempotency-Key": uuid4().hex}
        first = await client.http.post(path, json=body, headers=headers)
        again = await client.http.post(path, json=body, headers=headers)
        assert "idempotency-replayed" not in first.headers, path
        assert again.headers["idempotency-replayed"] == "true", path
        assert (again.status_code, again.json()) == (first.status_code, first.json()), path
        if body is not None and "step_number" in body:
            other = await client.http.post(path, json={**body, "step_number": 2}, headers=headers)
            assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch"), path


async def test_the_same_key_at_once_begins_one_workflow(client: Client) -> None:
    headers, body = {"Idempotency-Key": uuid4().hex}, {"workflow_total_steps": 6, "step_number": 1}
    answers = await asyncio.gather(*(client.http.post(HUB, json=body, headers=headers) for _ in range(20)))
    begun = {answer.json()["workflow_id"] for answer in answers if answer.status_code == 200}
    assert len(begun) == 1
    rest = [answer for answer in answers if answer.status_code != 200]
    assert {answer.json()["code"] for answer in rest} <= {"idempotency_in_flight"}
    assert all(answer.headers["retry-after"] for answer in rest)


async def test_a_repeat_of_everything_is_harmless(client: Client, hub: Hub) -> None:
    """What a bot does whose answers get lost: each request twice, without a key."""
    name, uri = unique("twice"), actors.publish(hub)
    begun = {"workflow_total_steps": 6, "step_number": 1, "modality": "llm"}
    first, second = await client.post(HUB, begun), await client.post(HUB, begun)
    assert first["workflow_id"] != second["workflow_id"]  # a lost begin leaves an idle draft, and nothing else
    for step in (
        {"step_number": 2, "provider_type": "hugging_face"},
        {"step_number": 3, "name": name, "uri": uri},
        {"step_number": 4, "trigger_workflow": True},
    ):
        body = {"workflow_id": second["workflow_id"], **step}
        one, two = await client.post(HUB, body), await client.post(HUB, body)
        assert one["workflow_id"] == two["workflow_id"]
        assert (one["workflow_steps"], one["field_steps"]) == (two["workflow_steps"], two["field_steps"])
    ended = await client.ended(two)
    assert ended["status"] == "completed"
    assert (await client.get("/jobs", workflow_id=second["workflow_id"]))["total"] == 1
    assert (await client.get("/models", name=name))["total"] == 1
    assert await client.ended(two) == ended
    model = ended["result"]["href"]
    await client.delete(model)
    assert (await client.http.delete(model)).status_code == 404

"""All that is wrong with a request is in one answer, at the steps of the draft's own variant (rules 2, 3, 4 and 14)."""

from typing import Any
from uuid import uuid4

import pytest

from tests.contract import actors
from tests.contract.actors import ADD, CLOUD, CLUSTER, DEPLOY, HUB, SCAN, begin, go_on
from tests.contract.running import Client, Json, Stepway
from tests.hub import Hub

BEGIN: Json = {"workflow_total_steps": 6, "step_number": 1}
Found = dict[str, tuple[str, int | None]]


def faults(problem: Json) -> Found:
    """Code and step of each fault by its field; a field has one fault."""
    found = {one["param"]: (one["code"], one["step"]) for one in problem["errors"]}
    assert len(found) == len(problem["errors"]), problem["errors"]
    for one in problem["errors"]:
        assert one["message"]
        assert not one["message"].endswith("..")
        assert " 1 characters" not in one["message"]
    assert not problem["detail"].endswith("..")
    assert problem["detail"].endswith(".")
    return found


async def refused(client: Client, path: str, body: Any, status: int = 422, code: str = "validation_failed") -> Found:
    return faults(await client.refused(path, body, status, code))


async def test_faults_of_format_are_placed_by_the_drafts_own_variant(client: Client) -> None:
    cloud, local = await actors.cloud_model(client), await actors.disk_model(client)
    wrong: Json = {"endpoint_name": "", "cluster_id": "x", "deploy_config": {"concurrent_requests": 0}}
    for model, name_at, cluster_at in ((cloud, 4, 6), (local, 3, 5)):
        placed: Found = {
            "endpoint_name": ("too_short", name_at), "cluster_id": ("invalid_format", cluster_at),
            "deploy_config.concurrent_requests": ("out_of_range", name_at),
        }  # fmt: skip
        assert await refused(client, DEPLOY, {**BEGIN, "model_id": model["id"], **wrong}) == placed
        draft = await begin(client, DEPLOY, model_id=model["id"])
        assert await refused(client, DEPLOY, {"workflow_id": draft["workflow_id"], "step_number": 1, **wrong}) == placed
        # also when the control fields are wrong
        body = {"workflow_id": draft["workflow_id"], "step_number": "1", **wrong}
        assert await refused(client, DEPLOY, body) == {"step_number": ("invalid_type", None), **placed}
        body = {"workflow_id": draft["workflow_id"], "step_number": 7, **wrong}
        assert await refused(client, DEPLOY, body) == {"step_number": ("out_of_range", None), **placed}
    credential = {**BEGIN, "model_id": local["id"], "credential_id": "x"}
    assert (await refused(client, DEPLOY, credential))["credential_id"] == (
        "invalid_format",
        None,
    )  # it has no such step


async def test_control_fields_fields_references_and_names_are_refused_together(client: Client, hub: Hub) -> None:
    taken = (await client.ended(await actors.import_hub(client, actors.publish(hub))))["workflow_steps"]["name"]
    body: Json = {
        "step_number": 99, "trigger_workflow": "yes", "name": taken, "modality": "video", "project_id": str(uuid4()),
        "icon": "nowhere.png", "tags": [{"name": "a", "color": "red"}], "nope": 1, "status": "failed",
    }  # fmt: skip
    found: Found = {
        "step_number": ("out_of_range", None), "trigger_workflow": ("invalid_type", None), "workflow_id": ("one_of", None),
        "workflow_total_steps": ("one_of", None), "name": ("name_taken", 3), "modality": ("not_allowed", 1),
        "project_id": ("reference_not_found", 3), "icon": ("unknown_icon", 3), "tags.0.color": ("invalid_format", 3),
        "nope": ("unknown_field", None), "status": ("server_field", None),
    }  # fmt: skip
    assert await refused(client, HUB, body) == found
    draft = await begin(client, HUB)
    two = {"workflow_id": draft["workflow_id"], "step_number": 3, "name": taken, "project_id": str(uuid4())}
    assert await refused(client, HUB, two) == {"name": ("name_taken", 3), "project_id": ("reference_not_found", 3)}
    one = {"workflow_id": draft["workflow_id"], "step_number": 3, "name": taken}
    assert await refused(client, HUB, one, 409, "name_taken") == {"name": ("name_taken", 3)}
    assert await client.get(f"/workflows/{draft['workflow_id']}") == draft


async def test_a_trigger_hears_of_what_is_missing_beside_what_is_wrong(client: Client, hub: Hub) -> None:
    taken = (await client.ended(await actors.import_hub(client, actors.publish(hub))))["workflow_steps"]["name"]
    body = {**BEGIN, "trigger_workflow": True, "name": taken, "project_id": str(uuid4()), "modality": "llm"}
    assert await refused(client, HUB, body) == {
        "name": ("name_taken", 3), "project_id": ("reference_not_found", 3), "provider_type": ("missing", 2),
        "uri": ("missing", 3),
    }  # fmt: skip
    body = {**BEGIN, "trigger_workflow": True, "model_id": str(uuid4())}
    found = await refused(client, DEPLOY, body, 422, "reference_not_found")
    assert found["model_id"] == ("reference_not_found", 1)
    assert found["endpoint_name"] == ("missing", 3)
    # nothing is wrong with the format: the fields are kept
    problem = await client.refused(HUB, {**BEGIN, "trigger_workflow": True, "name": taken}, 422, "missing_fields")
    assert faults(problem) == {
        "modality": ("missing", 1), "provider_type": ("missing", 2), "uri": ("missing", 3), "name": ("name_taken", 3),
    }  # fmt: skip
    assert problem["workflow"]["workflow_steps"] == {"name": taken}


@pytest.mark.parametrize("path", [HUB, CLOUD, DEPLOY, CLUSTER, SCAN, ADD])
async def test_an_empty_body_hears_of_all_that_it_lacks(client: Client, path: str) -> None:
    assert await refused(client, path, {}) == {
        "step_number": ("required", None), "workflow_id": ("one_of", None), "workflow_total_steps": ("one_of", None),
    }  # fmt: skip
    for nothing in (b"[]", b'"text"', b"7", b"null"):
        answer = await client.http.post(path, content=nothing, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")
        [fault] = answer.json()["errors"]
        assert fault["param"] is None
        assert fault["message"]


async def test_which_workflow_is_meant_comes_before_what_it_is_to_hold(client: Client) -> None:
    draft = await begin(client, HUB)
    body = {"workflow_id": draft["workflow_id"], "step_number": 1, "modality": "video"}
    await client.refused(SCAN, body, 409, "wrong_wizard")
    await client.refused(HUB, {**body, "workflow_id": str(uuid4())}, 404, "not_found")
    assert (await refused(client, HUB, {"workflow_id": str(uuid4())})) == {"step_number": ("required", None)}


async def test_an_empty_text_is_no_value(client: Client) -> None:
    """In JSON it is refused, for null is what clears; in a form, which has no null, it stands for it (test_forms)."""
    for path, names in (
        (HUB, ("name", "uri", "author", "icon", "description", "revision")),
        (CLOUD, ("name", "uri", "author", "icon", "description")),
        (CLUSTER, ("name", "icon", "ingress_url")),
    ):
        for blank in ("", "  "):
            found = await refused(client, path, {**BEGIN, **dict.fromkeys(names, blank)})
            assert {name: code for name, (code, _) in found.items()} == dict.fromkeys(names, "too_short")
    problem = await client.refused(HUB, {**BEGIN, "author": ""}, 422, "validation_failed")
    assert problem["detail"] == "author must have at least 1 character."


# ---- echoes


async def test_what_comes_back_as_it_was_answered_is_no_news(client: Client) -> None:
    project_id = await actors.project(client)
    draft = await begin(client, DEPLOY, project_id=project_id, model_id=(await actors.cloud_model(client))["id"])
    shown = draft["workflow_steps"]
    assert {"project", "model"} < shown.keys()
    assert await go_on(client, DEPLOY, draft, 1, **shown) == draft
    further = await go_on(client, DEPLOY, draft, 3, **shown, endpoint_name="echo")
    assert further["workflow_steps"] == shown | {"endpoint_name": "echo"}
    ids = {"workflow_id": draft["workflow_id"], "step_number": 1}
    for changed in ({"project": {**shown["project"], "name": "x"}}, {"project": None}, {"cluster": None}):
        [name] = changed
        assert await refused(client, DEPLOY, {**ids, **changed}, 422, "unknown_field") == {
            name: ("unknown_field", None)
        }
    assert await refused(
        client, DEPLOY, {**BEGIN, "project": shown["project"]}, 422, "unknown_field"
    )  # not answered yet
    for name in ("status", "job", "result", "current_step"):  # said to be the server's, whatever they hold
        assert await refused(client, DEPLOY, {**ids, name: draft[name]}) == {name: ("server_field", None)}


# ---- credentials


async def test_a_credential_of_another_type_is_refused(client: Client) -> None:
    hub_token, key = await actors.credential(client), await actors.credential(client, "openai")
    for source in ("hugging_face", "url", "disk", None):
        body = {**BEGIN, "provider_type": source, "proprietary_credential_id": key}
        found = await refused(client, HUB, body, 422, "wrong_credential_type")
        assert found == {"proprietary_credential_id": ("wrong_credential_type", 4)}
    await begin(client, HUB, provider_type="hugging_face", proprietary_credential_id=hub_token)

    project_id, model = await actors.project(client), await actors.cloud_model(client)
    body = {**BEGIN, "project_id": project_id, "model_id": model["id"], "credential_id": hub_token}
    found = await refused(client, DEPLOY, body, 422, "wrong_credential_type")
    assert found == {"credential_id": ("wrong_credential_type", 2)}
    # a model that is chosen later does not clear it
    draft = await begin(client, DEPLOY, project_id=project_id, credential_id=hub_token)
    chosen = await go_on(client, DEPLOY, draft, 1, model_id=model["id"])
    assert chosen["workflow_steps"]["credential_id"] == hub_token
    assert ("credential_id", "inconsistent", 2) in [(m["field"], m["code"], m["step"]) for m in chosen["missing"]]
    fitting = await go_on(client, DEPLOY, draft, 2, credential_id=key)
    assert "credential_id" not in {one["field"] for one in fitting["missing"]}


# ---- 409 of a trigger


async def test_a_trigger_that_comes_too_late_shows_the_workflow(client: Client, hub: Hub) -> None:
    with actors.held(hub):
        started = await actors.import_hub(client, actors.publish(hub))
        body = {"workflow_id": started["workflow_id"], "step_number": 3, "author": "x", "trigger_workflow": True}
        problem = await client.refused(HUB, body, 409, "workflow_locked")
        assert problem["workflow"]["workflow_id"] == started["workflow_id"]
        assert problem["workflow"]["job"]["id"] == problem["job_id"] == started["job"]["id"]
        assert "author" not in problem["workflow"]["workflow_steps"]
        assert (await refused(client, HUB, {**body, "status": "x"})) == {"status": ("server_field", None)}
    ended = await client.ended(started)
    problem = await client.refused(HUB, body, 409, "workflow_finished")
    assert problem["workflow"] == ended
    draft = await begin(client, HUB)
    cancelled = await client.post(f"/workflows/{draft['workflow_id']}/cancel")
    body = {"workflow_id": draft["workflow_id"], "step_number": 1, "author": "x", "trigger_workflow": True}
    assert (await client.refused(HUB, body, 409, "workflow_finished"))["workflow"] == cancelled


async def test_too_many_drafts_are_no_reason_to_hide_faults(stepway: Stepway) -> None:
    _, person = await stepway.person("member")
    for _ in range(100):
        await person.post(SCAN, {"workflow_total_steps": 3, "step_number": 1})
    assert await refused(person, HUB, {**BEGIN, "name": ""}) == {"name": ("too_short", 3)}
    await person.refused(HUB, BEGIN, 409, "too_many_drafts")

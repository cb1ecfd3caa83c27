"""What a step keeps, what it refuses, and what its answer shows (rules 1 to 4, 8, 13 and 14)."""

import asyncio
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from services.app.wizards import service as workflows
from tests.contract import actors
from tests.contract.actors import CLOUD, DEPLOY, HUB, begin, go_on, unique
from tests.contract.running import Client, Json, Stepway
from tests.hub import Hub

NOBODYS = "8b10fe3c-80c2-4147-b8ef-8fa8b9581c71"  # no workflow has this id


async def test_a_draft_keeps_the_last_value_at_whatever_step_it_came(client: Client) -> None:
    first = await begin(client, HUB, step=3, name=unique("a"), tags=[{"name": "x", "color": "#000000"}], modality="llm")
    assert (first["current_step"], first["total_steps"], first["revision"]) == (3, 6, 1)
    second = await go_on(client, HUB, first, 1, modality=["llm", "embedding"], tags=[])
    assert second["current_step"] == 3
    assert second["workflow_steps"]["tags"] == []
    assert second["workflow_steps"]["modality"] == ["llm", "embedding"]
    assert second["workflow_steps"]["name"] == first["workflow_steps"]["name"]
    assert second["field_steps"] == {"name": 3, "tags": 1, "modality": 1}
    assert second["revision"] == 2
    cleared = await go_on(client, HUB, first, 2, tags=None)
    assert cleared["workflow_steps"]["tags"] is None
    assert (second["message"], cleared["message"]) == ("Step 1 of 6 is saved.", "Step 2 of 6 is saved.")
    shown = await client.get(f"/workflows/{first['workflow_id']}")
    assert shown == cleared | {"message": "Step 3 of 6 is saved."}


async def test_a_repeat_changes_nothing(client: Client) -> None:
    fields: Json = {"modality": "llm", "provider_type": "hugging_face", "author": None}
    first = await begin(client, HUB, **fields)
    assert first["workflow_steps"] == fields
    again = await go_on(client, HUB, first, 1, **fields, workflow_total_steps=None, trigger_workflow=None)
    assert again == first
    assert len(await _so_far(client, first)) == 1


async def _so_far(client: Client, workflow: dict[str, object]) -> list[object]:
    """The events of a draft: it is cancelled, so that its stream ends."""
    await client.post(f"/workflows/{workflow['workflow_id']}/cancel")
    events = await client.events(f"/workflows/{workflow['workflow_id']}/events")
    assert events is not None
    assert [event.type for event in events[-2:]] == ["workflow", "end"]
    return list(events[:-2])


@pytest.mark.parametrize(
    ("body", "params"),
    [
        ({"workflow_total_steps": 6}, {"step_number"}),
        ({"workflow_total_steps": 21, "step_number": 1}, {"workflow_total_steps"}),
        ({"workflow_total_steps": 0, "step_number": 1}, {"workflow_total_steps"}),
        ({"workflow_total_steps": 6, "step_number": 7}, {"step_number"}),
        ({"workflow_total_steps": 6, "step_number": 0}, {"step_number"}),
        ({"workflow_total_steps": "6", "step_number": 1}, {"workflow_total_steps"}),
        ({"workflow_total_steps": True, "step_number": 1}, {"workflow_total_steps"}),
        ({"workflow_total_steps": 6, "step_number": 1.5}, {"step_number"}),
        ({"workflow_total_steps": 6, "step_number": 2**62}, {"step_number"}),
        ({"workflow_total_steps": 6, "step_number": 1, "trigger_workflow": "yes"}, {"trigger_workflow"}),
        ({"step_number": 1}, {"workflow_id", "workflow_total_steps"}),
        ({"step_number": 1, "workflow_id": NOBODYS, "workflow_total_steps": 6}, {"workflow_id", "workflow_total_steps"}),
        ({"step_number": 1, "workflow_id": "x"}, {"workflow_id"}),
        ({"step_number": 1, "workflow_id": 7}, {"workflow_id"}),
    ],
)  # fmt: skip
async def test_control_fields_are_checked(client: Client, body: dict[str, object], params: set[str]) -> None:
    problem = await client.refused(HUB, body, 422, "validation_failed")
    assert {error["param"] for error in problem["errors"]} == params


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", "  "), ("name", "x" * 101), ("name", 7), ("name", "a\u0007b"), ("name", "a\u202eb"),
        ("name", "\u200b"), ("name", ["a"]), ("tags", [{"name": "a"}]), ("tags", [{"name": "a", "color": "red"}]),
        ("tags", [{"name": "a", "color": "#000000"}, {"name": "a", "color": "#000001"}]), ("tags", "a"),
        ("modality", "video"), ("modality", []), ("modality", ["llm", "llm"]), ("modality", {}),
        ("provider_type", "ftp"), ("provider_type", "cloud_model"), ("uri", "x" * 501), ("icon", "../../etc/passwd"),
        ("proprietary_credential_id", "not-a-uuid"), ("proprietary_credential_id", "{" + NOBODYS + "}"),
        ("project_id", 12), ("revision", "a b"),
    ],
)  # fmt: skip
async def test_a_fault_of_format_stores_nothing(client: Client, field: str, value: object) -> None:
    draft = await begin(client, HUB, author="me")
    body = {"workflow_id": draft["workflow_id"], "step_number": 4, "author": "you", field: value}
    problem = await client.post(HUB, body, 422)
    assert problem["code"] == "validation_failed"
    assert {error["param"].split(".")[0] for error in problem["errors"]} == {field}
    assert all(error["step"] for error in problem["errors"])
    assert len(str(value)) < 4 or str(value) not in str(problem)
    assert "workflow" not in problem
    assert await client.get(f"/workflows/{draft['workflow_id']}") == draft


async def test_all_faults_are_named_at_once(client: Client) -> None:
    body = {"workflow_total_steps": 99, "step_number": 1, "name": "", "modality": "x", "nope": 1, "status": "completed"}
    problem = await client.refused(HUB, body, 422, "validation_failed")
    found = {error["param"]: error["code"] for error in problem["errors"]}
    assert found == {
        "workflow_total_steps": "out_of_range", "name": "too_short", "modality": "not_allowed", "nope": "unknown_field",
        "status": "server_field",
    }  # fmt: skip
    assert problem["type"] == "/docs/errors#validation_failed"
    assert (problem["object"], problem["status"], problem["retryable"]) == ("error", 422, False)
    assert problem["param"] == problem["errors"][0]["param"]


@pytest.mark.parametrize(
    "field", ["status", "job", "result", "current_step", "missing", "reason", "workflow_steps", "field_steps", "links"]
)
async def test_what_the_server_sets_cannot_be_sent(client: Client, field: str) -> None:
    await client.refused(HUB, {"workflow_total_steps": 6, "step_number": 1, field: None}, 422, "validation_failed")


@pytest.mark.parametrize("field", ["recommendations", "progress", "additional_workers", "provider", "model"])
async def test_unknown_fields_are_refused(client: Client, field: str) -> None:
    for path in (HUB, CLOUD, DEPLOY, actors.SCAN, actors.ADD, actors.CLUSTER):
        body = {"workflow_total_steps": 6, "step_number": 1, field: {"id": str(uuid4())}}
        await client.refused(path, body, 422, "unknown_field")


async def test_ids_are_read_in_any_case_and_shown_in_lower(client: Client) -> None:
    project_id = await actors.project(client)
    draft = await begin(client, DEPLOY, project_id=project_id.upper())
    assert draft["workflow_steps"]["project_id"] == project_id
    assert draft["workflow_steps"]["project"]["id"] == project_id
    body = {"workflow_id": draft["workflow_id"].upper(), "step_number": 1, "project_id": project_id}
    assert await client.post(DEPLOY, body) == draft


async def test_what_an_id_names_must_be_there(client: Client) -> None:
    problem = await client.refused(
        DEPLOY, {"workflow_total_steps": 6, "step_number": 1, "model_id": str(uuid4())}, 422, "reference_not_found"
    )
    assert problem["errors"] == [
        {"param": "model_id", "code": "reference_not_found", "message": "There is no such model.", "step": 1}
    ]
    assert problem["param"] == "model_id"


async def test_what_the_caller_may_not_see_is_not_there(stepway: Stepway, client: Client) -> None:
    secret = await actors.project(client)
    model = await actors.cloud_model(client, project_id=secret)
    _, stranger = await stepway.person("member")
    for field, value in (("project_id", secret), ("model_id", model["id"])):
        hidden = await stranger.refused(
            DEPLOY, {"workflow_total_steps": 6, "step_number": 1, field: value}, 422, "reference_not_found"
        )
        gone = await stranger.refused(
            DEPLOY, {"workflow_total_steps": 6, "step_number": 1, field: str(uuid4())}, 422, "reference_not_found"
        )
        assert hidden == gone


async def test_a_project_that_one_may_only_read_is_no_place_to_deploy(stepway: Stepway, client: Client) -> None:
    project_id = await actors.project(client)
    _, reader = await stepway.person("member", {project_id: "viewer"})
    problem = await reader.refused(
        DEPLOY, {"workflow_total_steps": 6, "step_number": 1, "project_id": project_id}, 422, "validation_failed"
    )
    assert problem["errors"][0]["code"] == "not_a_member"


async def test_other_peoples_workflows(stepway: Stepway, client: Client) -> None:
    owner_id, owner = await stepway.person("member")
    _, stranger = await stepway.person("member")
    _, operator = await stepway.person("operator")
    draft = await begin(owner, HUB, modality="llm")
    path = f"/workflows/{draft['workflow_id']}"
    body = {"workflow_id": draft["workflow_id"], "step_number": 1, "modality": "embedding"}
    unknown = await stranger.refused(HUB, {**body, "workflow_id": str(uuid4())}, 404, "not_found")
    assert await stranger.refused(HUB, body, 404, "not_found") == unknown
    assert (await stranger.http.get(path)).status_code == 404
    assert (await stranger.http.delete(path)).status_code == 404
    assert (await stranger.http.get(f"{path}/events")).status_code == 404
    assert draft["workflow_id"] not in {one["workflow_id"] for one in (await stranger.get("/workflows"))["data"]}
    await operator.refused(HUB, body, 403, "not_owner")
    assert await operator.get(path) == draft
    changed = await client.post(HUB, body)  # an admin may
    assert changed["owner_id"] == owner_id
    assert await owner.get(path) == changed


async def test_a_viewer_takes_no_steps_and_a_member_registers_no_cluster(stepway: Stepway) -> None:
    _, viewer = await stepway.person("viewer")
    _, member = await stepway.person("member")
    await viewer.refused(HUB, {"workflow_total_steps": 6, "step_number": 1}, 403, "forbidden")
    await member.refused(actors.CLUSTER, {"workflow_total_steps": 3, "step_number": 1}, 403, "forbidden")


async def test_a_key_that_is_bound_to_a_project_stays_in_it(stepway: Stepway, client: Client) -> None:
    mine, other = await actors.project(client), await actors.project(client)
    _, bound = await stepway.person("operator", {mine: "member", other: "member"}, only_project=mine)
    await bound.refused(
        DEPLOY, {"workflow_total_steps": 6, "step_number": 1, "project_id": other}, 422, "reference_not_found"
    )
    provider = await actors.provider(client)
    fields = {
        "provider_type": "cloud_model",
        "provider_id": provider["id"],
        "name": unique("b"),
        "uri": "openai/x",
        "modality": "llm",
    }
    begun = {"workflow_total_steps": 6, "step_number": 1, "trigger_workflow": True, **fields}
    refused = await bound.refused(CLOUD, begun, 403, "forbidden")
    assert refused["workflow"]["status"] == "in_progress"
    draft = refused["workflow"]
    done = await go_on(bound, CLOUD, draft, 4, project_id=mine, trigger_workflow=True)
    assert done["status"] == "completed"
    elsewhere = await begin(client, DEPLOY, project_id=other)
    assert (await bound.http.get(f"/workflows/{elsewhere['workflow_id']}")).status_code == 404
    assert elsewhere["workflow_id"] not in {one["workflow_id"] for one in (await bound.get("/workflows"))["data"]}


async def test_the_wrong_wizard(client: Client) -> None:
    draft = await begin(client, HUB)
    await client.refused(CLOUD, {"workflow_id": draft["workflow_id"], "step_number": 1}, 409, "wrong_wizard")
    problem = await client.http.get(f"/clusters/recommended/{draft['workflow_id']}")
    assert (problem.status_code, problem.json()["code"]) == (409, "wrong_wizard")


async def test_the_total_is_echoed_and_bounds_the_step(client: Client) -> None:
    draft = await begin(client, HUB, total=20, step=18)
    assert (draft["total_steps"], draft["current_step"]) == (20, 18)
    small = await begin(client, HUB, total=1)
    await client.refused(HUB, {"workflow_id": small["workflow_id"], "step_number": 2}, 422, "validation_failed")


async def test_if_match_is_optional_and_412_when_stale(client: Client) -> None:
    draft = await begin(client, HUB)
    body = {"workflow_id": draft["workflow_id"], "step_number": 1, "modality": "llm"}
    answer = await client.http.post(HUB, json=body, headers={"If-Match": '"1"'})
    assert (answer.status_code, answer.headers["etag"], answer.json()["revision"]) == (200, '"2"', 2)
    for stale in ('"1"', 'W/"1"', "1", '"nonsense"'):
        await client.refused(HUB, {**body, "author": "x"}, 412, "revision_mismatch", if_match=stale)
    await client.post(HUB, {**body, "author": "x"}, if_match="*")
    path = f"/workflows/{draft['workflow_id']}"
    assert (await client.http.get(path)).headers["etag"] == '"3"'
    await client.refused(f"{path}/cancel", None, 412, "revision_mismatch", if_match='"2"')
    assert (await client.http.delete(path, headers={"If-Match": '"2"'})).status_code == 412
    assert (await client.http.delete(path, headers={"If-Match": '"3"'})).status_code == 204


# ---- what is missing, and what does not fit any more


async def test_missing_names_field_and_step_by_variant(client: Client) -> None:
    draft = await begin(client, DEPLOY)
    assert {one["field"]: one["step"] for one in draft["missing"]} == {
        "project_id": 1, "model_id": 1, "endpoint_name": 3, "cluster_id": 5, "deploy_config.concurrent_requests": 3,
        "deploy_config.avg_sequence_length": 3, "deploy_config.avg_context_length": 3,
    }  # fmt: skip
    cloud = await go_on(client, DEPLOY, draft, 1, model_id=(await actors.cloud_model(client))["id"])
    steps = {one["field"]: one["step"] for one in cloud["missing"]}
    assert (steps["credential_id"], steps["endpoint_name"], steps["cluster_id"]) == (2, 4, 6)
    problem = await client.refused(
        DEPLOY, {"workflow_id": draft["workflow_id"], "step_number": 4, "endpoint_name": "x", "trigger_workflow": True},
        422, "missing_fields",
    )  # fmt: skip
    assert problem["workflow"]["workflow_steps"]["endpoint_name"] == "x"
    assert problem["workflow"]["current_step"] == 4
    assert problem["workflow"]["job"] is None
    shown = [(one["field"], one["step"], one["code"]) for one in problem["workflow"]["missing"]]
    assert [(one["param"], one["step"], one["code"]) for one in problem["errors"]] == shown
    assert await client.get(f"/workflows/{draft['workflow_id']}") == problem["workflow"]


async def test_the_icon_is_required_for_url_and_disk(client: Client) -> None:
    draft = await begin(client, HUB, modality="llm", name=unique("i"))
    for source, uri, wanted in (
        ("hugging_face", "a/b", []), ("url", "https://example.com/m.gguf", ["icon"]), ("disk", "/nowhere/m.gguf", None),
    ):  # fmt: skip
        body = {"workflow_id": draft["workflow_id"], "step_number": 3, "provider_type": source, "uri": uri}
        if wanted is None:
            problem = await client.refused(HUB, body, 422, "validation_failed")
            assert problem["errors"][0]["code"] == "outside_roots"
        else:
            answer = await client.post(HUB, body)
            assert [one["field"] for one in answer["missing"]] == wanted


async def test_a_later_source_makes_the_uri_inconsistent_and_keeps_it(client: Client) -> None:
    draft = await begin(client, HUB, modality="llm", name=unique("s"), provider_type="hugging_face", uri="people/thing")
    assert draft["missing"] == []
    changed = await go_on(client, HUB, draft, 2, provider_type="url", icon=actors.ICON)
    [missing] = changed["missing"]
    assert (missing["field"], missing["step"], missing["code"]) == ("uri", 3, "inconsistent")
    assert changed["workflow_steps"]["uri"] == "people/thing"
    problem = await client.refused(
        HUB, {"workflow_id": draft["workflow_id"], "step_number": 4, "trigger_workflow": True}, 422, "missing_fields"
    )
    assert problem["errors"][0]["code"] == "inconsistent"
    back = await go_on(client, HUB, draft, 2, provider_type="hugging_face")
    assert back["missing"] == []


async def test_a_uri_that_its_source_cannot_have_is_refused_at_its_step(client: Client) -> None:
    draft = await begin(client, HUB, provider_type="url")
    for uri in ("people/thing", "ftp://example.com/x", "https://user:pw@example.com/x", "file:///etc/passwd"):
        problem = await client.refused(
            HUB, {"workflow_id": draft["workflow_id"], "step_number": 3, "uri": uri}, 422, "validation_failed"
        )
        assert problem["errors"][0]["param"] == "uri"
        assert "pw" not in str(problem)
    assert await client.get(f"/workflows/{draft['workflow_id']}") == draft


async def test_exactly_one_of_catalogue_and_uri(client: Client) -> None:
    chosen = (await client.get("/models", source="catalog"))["data"][0]
    other = next(
        one
        for one in (await client.get("/models/providers", type="cloud_model"))["data"]
        if one["id"] != chosen["provider_id"]
    )
    draft = await begin(client, CLOUD, provider_type="cloud_model", provider_id=chosen["provider_id"], name=unique("c"))
    assert [(one["field"], one["code"]) for one in draft["missing"]] == [("cloud_model_id", "missing")]
    both = await go_on(client, CLOUD, draft, 4, cloud_model_id=chosen["id"], uri="openai/gpt4")
    assert [(one["field"], one["code"]) for one in both["missing"]] == [("uri", "inconsistent")]
    await client.refused(
        CLOUD, {"workflow_id": draft["workflow_id"], "step_number": 4, "trigger_workflow": True}, 422, "missing_fields"
    )
    one = await go_on(client, CLOUD, draft, 4, uri=None)
    assert one["missing"] == []
    elsewhere = await go_on(client, CLOUD, draft, 2, provider_id=other["id"])
    assert [(one["field"], one["code"]) for one in elsewhere["missing"]] == [("cloud_model_id", "inconsistent")]
    assert elsewhere["workflow_steps"]["cloud_model_id"] == chosen["id"]


async def test_a_local_model_takes_no_credential(client: Client, stepway: Stepway) -> None:
    model = await actors.disk_model(client)
    key = await actors.credential(client, "openai")
    draft = await begin(
        client, DEPLOY, credential_id=key, model_id=model["id"], project_id=await actors.project(client)
    )
    found = {one["field"]: one["code"] for one in draft["missing"]}
    assert found["credential_id"] == "inconsistent"
    assert draft["workflow_steps"]["credential"]["id"] == key


async def test_what_was_deleted_between_steps_is_missing_and_refused(client: Client) -> None:
    template = await client.post(
        "/templates", {"name": unique("t"), "template_type": "chat", "deploy_config": actors.CONFIG}, 201
    )
    project_id = await actors.project(client)
    key = await actors.credential(client, "openai")
    model = await actors.cloud_model(client)
    draft = await begin(
        client, DEPLOY, project_id=project_id, model_id=model["id"], template_id=template["id"], credential_id=key,
        endpoint_name="x", cluster_id=await actors.machine(client),
    )  # fmt: skip
    assert draft["missing"] == []
    await client.delete(f"/templates/{template['id']}")
    await client.delete(f"/credentials/{key}")
    await client.delete(f"/models/{model['id']}")
    await client.delete(f"/projects/{project_id}")
    shown = await client.get(f"/workflows/{draft['workflow_id']}")
    gone = {"template_id", "credential_id", "model_id", "project_id"}
    assert {one["field"] for one in shown["missing"] if one["code"] == "reference_not_found"} == gone
    assert all(shown["workflow_steps"][name.removesuffix("_id")] is None for name in gone)
    body = {"workflow_id": draft["workflow_id"], "step_number": 5, "trigger_workflow": True}
    problem = await client.post(DEPLOY, body, 422)
    assert {error["param"] for error in problem["errors"] if error["code"] == "reference_not_found"} == gone
    assert problem["workflow"] == shown | {
        "current_step": 5, "revision": 2, "updated_at": problem["workflow"]["updated_at"],
        "message": "Step 5 of 6 is saved.",
    }  # fmt: skip


async def test_a_credential_that_is_gone_does_not_break_an_import(client: Client, hub: Hub) -> None:
    key = await actors.credential(client)
    fields: Json = {"modality": "llm", "provider_type": "hugging_face", "name": unique("g"), "uri": actors.publish(hub)}
    draft = await begin(client, HUB, proprietary_credential_id=key, **fields)
    await client.delete(f"/credentials/{key}")
    body = {"workflow_id": draft["workflow_id"], "step_number": 4, "trigger_workflow": True}
    problem = await client.refused(HUB, body, 422, "reference_not_found")
    assert problem["errors"][0] | {"message": ""} == {
        "param": "proprietary_credential_id", "code": "reference_not_found", "step": 4, "message": "",
    }  # fmt: skip
    cleared = await client.post(HUB, {**body, "proprietary_credential_id": None})
    assert (await client.ended(cleared))["status"] == "completed"


# ---- limits


async def test_a_hundred_open_drafts_even_in_a_rush(stepway: Stepway) -> None:
    _, person = await stepway.person("member")
    body = {"workflow_total_steps": 3, "step_number": 1}
    answers = await asyncio.gather(*(person.http.post(actors.SCAN, json=body) for _ in range(115)))
    codes = [answer.status_code for answer in answers]
    assert codes.count(200) == 100
    refused = [answer.json() for answer in answers if answer.status_code != 200]
    assert {(one["status"], one["code"]) for one in refused} == {(409, "too_many_drafts")}
    listed = await person.get("/workflows", limit=200)
    assert listed["total"] == 100
    await person.delete(f"/workflows/{listed['data'][0]['workflow_id']}")
    await begin(person, actors.SCAN, 3)


async def test_idle_drafts_expire_and_tell_those_who_follow(stepway: Stepway, client: Client) -> None:
    context = stepway.assembly.context
    idle, fresh = await begin(client, HUB, name=unique("i")), await begin(client, HUB)
    failed, _ = await actors.failed_import(client)
    reopened = await go_on(client, HUB, failed, 3, author="x")
    async with context.database.transaction() as session:
        await session.execute(
            text("UPDATE platform.workflow SET updated_at = now() - interval '31 days' WHERE id = ANY(:ids)"),
            {"ids": [UUID(idle["workflow_id"]), UUID(reopened["workflow_id"])]},
        )
    assert await workflows.expire(context, 30) == 2
    assert await workflows.expire(context, 30) == 0
    for one in (idle, reopened):
        shown = await client.get(f"/workflows/{one['workflow_id']}")
        assert (shown["status"], shown["reason"]) == ("cancelled", "Nobody has touched the draft for 30 days.")
        events = await client.events(f"/workflows/{one['workflow_id']}/events")
        assert events is not None
        assert [event.type for event in events[-2:]] == ["workflow", "end"]
        assert events[-1].data == shown
    assert await client.get(f"/workflows/{fresh['workflow_id']}") == fresh


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "invalid_json"), (b"{", 400, "invalid_json"), (b"[]", 400, "invalid_json"),
        (b'{"step_number": 1, "step_number": 1}', 400, "invalid_json"), (b'{"step_number": NaN}', 400, "invalid_json"),
        (b'{"name": "\\u0000"}', 400, "invalid_json"), (b'{"name": "\\ud800"}', 400, "invalid_json"),
        (b'{"name": "\xff"}', 400, "invalid_json"), (b'{"step_number": 1e400}', 400, "invalid_json"),
        (b'{"step_number": ' + b"9" * 4000 + b"}", 400, "invalid_json"),
        (b'{"tags": ' + b"[" * 21 + b"]" * 21 + b"}", 400, "invalid_json"),
        (b'{"name": "' + b"x" * 1024 * 1024 + b'"}', 413, "body_too_large"),
    ],
)  # fmt: skip
async def test_bodies_that_nobody_should_send(client: Client, content: bytes, status: int, code: str) -> None:
    for path in (HUB, actors.CLUSTER):
        answer = await client.http.post(path, content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (status, code), path
        assert answer.headers["content-type"] == "application/problem+json"


async def test_json_as_text_is_refused(client: Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "text/json"):
        answer = await client.http.post(HUB, content=b'{"step_number": 1}', headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_texts_of_all_scripts_come_back_as_sent(client: Client) -> None:
    for script in (
        "模型 七",
        "नमूना",
        "👩‍💻 modèle",
        "e\u0301",
        "a" * 100,
        "𝕄𝕠𝕕𝕖𝕝",
        '"quoted"',
        "<script>",
        "%s{0}{self}",
    ):
        draft = await begin(client, HUB, name=script)
        assert draft["workflow_steps"]["name"] == script
    assert UUID(draft["workflow_id"])

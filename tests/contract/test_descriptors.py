"""GET /wizards describes the screens so that nobody needs code of their own for them; lists (rules 3, 5, 16, 17, 18)."""

import re
from typing import Any

import jsonschema_rs
import pytest

from stepway.uritemplate import expand
from tests.contract import actors
from tests.contract.actors import CLOUD, HUB, begin, go_on, unique
from tests.contract.running import Client, Json, Stepway
from tests.hub import Hub

TYPES = {
    "cloud_model_onboarding": ("/models/cloud-model-workflow", "json", {6}),
    "local_model_onboarding": ("/models/local-model-workflow", "json", {6}),
    "model_deployment": ("/models/deploy-workflow", "json", {6, 7}),
    "cluster_onboarding": ("/clusters/clusters", "multipart", {3}),
    "model_security_scan": ("/models/security-scan", "json", {3}),
    "add_worker_to_endpoint": ("/endpoints/add-worker", "json", {5}),
}
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def test_all_six_wizards_are_described(client: Client) -> None:
    listed = await client.get("/wizards")
    assert {
        one["type"]: (one["path"], one["encoding"], {v["total_steps"] for v in one["variants"]})
        for one in listed["data"]
    } == TYPES
    for wizard in listed["data"]:
        assert await client.get(f"/wizards/{wizard['type']}") == wizard
        assert wizard["method"] == "POST"
        assert wizard["total_steps"] == max(TYPES[wizard["type"]][2])
        assert [step["number"] for step in wizard["steps"]] == list(range(1, len(wizard["steps"]) + 1))
        keys = {step["key"] for step in wizard["steps"]}
        fields = {name for step in wizard["steps"] for name in step["schema"]["properties"]}
        for step in wizard["steps"]:
            assert step["by"] in ("user", "server")
            assert step["title"]
            assert step["description"]
            jsonschema_rs.meta.validate(step["schema"])
            assert step["schema"]["type"] == "object"
            assert step["options"].keys() <= step["schema"]["properties"].keys()
            for option in step["options"].values():
                assert {"href", "value", "label", "depends_on"} == option.keys()
                assert set(option["depends_on"]) <= fields
        for variant in wizard["variants"]:
            assert {step["key"] for step in variant["steps"]} <= keys
            assert variant["total_steps"] == len(variant["steps"])
            assert set(variant["required"]) <= fields
        assert wizard["variants"][-1]["when"] == {}
        assert wizard["trigger"]["required"]
        jsonschema_rs.meta.validate(wizard["result_schema"])
    assert (await client.http.get("/wizards/none")).status_code == 404


async def test_the_options_of_every_field_can_be_asked_for(client: Client) -> None:
    """Each template is expanded over a draft with all fields, and over one with none; value and label are in what it lists."""
    provider = await actors.provider(client)
    project_id = await actors.project(client)
    await actors.credential(client)
    await actors.credential(client, "openai", project_id=project_id)
    model = await actors.disk_model(client)
    draft = await begin(client, actors.DEPLOY, project_id=project_id, model_id=model["id"], deploy_config=actors.CONFIG)
    known: dict[str, Any] = {
        "provider_id": provider["id"],
        "project_id": project_id,
        "workflow_id": draft["workflow_id"],
    }
    empty = {"workflow_id": draft["workflow_id"]}
    for wizard in (await client.get("/wizards"))["data"]:
        for step in wizard["steps"]:
            for name, option in step["options"].items():
                for values in (known, empty):
                    listed = await client.get(expand(option["href"], values))
                    assert listed["object"] == "list", option
                    for item in listed["data"]:
                        for path in (option["value"], option["label"]):
                            value: Any = item
                            for part in path.split("."):
                                value = value[part]
                            assert isinstance(value, str), (name, option)
    assert (await client.get(expand("/models?source=catalog{&provider_id}", known)))["data"]


async def test_what_the_schemas_allow_is_what_a_step_takes(client: Client) -> None:
    """The file of a form is one in its schema; the seed's fields are valid by the schemas of their steps."""
    cluster = await client.get("/wizards/cluster_onboarding")
    file = cluster["steps"][0]["schema"]["properties"]["configuration_file"]
    assert (file["type"], file["format"]) == ("string", "binary")
    local = await client.get("/wizards/local_model_onboarding")
    details = next(step["schema"] for step in local["steps"] if step["key"] == "details")
    good = {"name": "a", "uri": "b/c", "tags": [{"name": "t", "color": "#66d1DF"}], "icon": None}
    assert jsonschema_rs.is_valid(details, good)
    assert not jsonschema_rs.is_valid(details, {**good, "tags": [{"name": "t", "color": "red"}]})
    assert not jsonschema_rs.is_valid(details, {"uri": "b/c"})


async def test_the_schemas_offer_only_what_their_wizard_takes(client: Client) -> None:
    for kind, path, step in (("cloud", CLOUD, "provider_type"), ("local", HUB, "provider_type")):
        wizard = await client.get(f"/wizards/{kind}_model_onboarding")
        schema = next(one["schema"] for one in wizard["steps"] if one["key"] == step)
        offered = schema["properties"]["provider_type"]["enum"]
        taken = []
        for value in ("cloud_model", "hugging_face", "url", "disk"):
            body = {"workflow_total_steps": 6, "step_number": 1, "provider_type": value}
            answer = await client.http.post(path, json=body)
            assert answer.status_code == (200 if jsonschema_rs.is_valid(schema, {"provider_type": value}) else 422)
            taken += [value] if answer.status_code == 200 else []
        assert offered == taken


def _value(shown: Json, path: str) -> Any:
    value: Any = shown
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _is_ready(needs: Json, shown: Json) -> bool:
    """Whether a descriptor says that nothing is missing from an answer's `workflow_steps`."""

    def has(path: str) -> bool:
        return _value(shown, path) is not None

    return (
        all(has(name) for name in needs["required"])
        and all(sum(map(has, group)) == 1 for group in needs["one_of"])
        and all(any(map(has, group)) for group in needs["any_of"])
        and all(has(other) for name, others in needs["dependent_required"].items() if has(name) for other in others)
    )


def _variant(wizard: Json, shown: Json) -> Json:
    """As a frontend finds it, from an answer alone."""
    found: Json = next(
        one for one in wizard["variants"] if all(_value(shown, path) == value for path, value in one["when"].items())
    )
    return found


async def test_the_variant_is_found_from_an_answer(client: Client) -> None:
    wizard = await client.get("/wizards/model_deployment")
    cloud, local = await actors.cloud_model(client), await actors.disk_model(client)
    for model, total in ((cloud, 7), (local, 6)):
        draft = await begin(client, actors.DEPLOY, model_id=model["id"])
        variant = _variant(wizard, draft["workflow_steps"])
        assert variant["total_steps"] == total
        absent = {one["field"]: one["step"] for one in draft["missing"] if "." not in one["field"]}
        steps = {key: step for step in wizard["steps"] for key in step["schema"]["properties"]}
        numbers = {one["key"]: one["number"] for one in variant["steps"]}
        assert absent == {name: numbers[steps[name]["key"]] for name in variant["required"] if name != "model_id"}


async def test_the_descriptor_says_all_that_a_trigger_needs(client: Client) -> None:
    """Whatever is left out of a whole draft: the descriptor and `missing` agree."""
    chosen = (await client.get("/models", source="catalog"))["data"][0]
    project_id, model = await actors.project(client), await actors.cloud_model(client)
    openai = await actors.provider(client)
    whole: list[tuple[str, str, Json]] = [
        (CLOUD, "cloud_model_onboarding",
         {"provider_type": "cloud_model", "provider_id": openai["id"], "name": unique("d"), "uri": "openai/x",
          "modality": "llm"}),
        (CLOUD, "cloud_model_onboarding",
         {"provider_type": "cloud_model", "provider_id": chosen["provider_id"], "name": unique("d"),
          "cloud_model_id": chosen["id"]}),
        (HUB, "local_model_onboarding", {"modality": "llm", "provider_type": "url", "name": unique("d"),
                                         "uri": "https://example.com/m.gguf", "icon": actors.ICON}),
        (HUB, "local_model_onboarding",
         {"modality": "llm", "provider_type": "hugging_face", "name": unique("d"), "uri": "a/b"}),
        (actors.DEPLOY, "model_deployment",
         {"project_id": project_id, "model_id": model["id"], "credential_id": await actors.credential(client, "openai"),
          "endpoint_name": "d", "cluster_id": await actors.machine(client), "deploy_config": actors.CONFIG}),
        (actors.DEPLOY, "model_deployment",
         {"project_id": project_id, "model_id": model["id"], "credential_id": await actors.credential(client, "openai"),
          "endpoint_name": "d", "cluster_id": await actors.machine(client),
          "template_id": (await client.get("/templates"))["data"][0]["id"]}),
    ]  # fmt: skip
    for path, kind, fields in whole:
        wizard = await client.get(f"/wizards/{kind}")
        assert wizard["trigger"] == {name: wizard["variants"][-1][name] for name in wizard["trigger"]}
        draft = await begin(client, path, total=7, **fields)
        assert draft["missing"] == []
        for left_out in (None, *fields):
            given = {} if left_out is None else {left_out: None}
            answer = await go_on(client, path, draft, 1, **given)
            variant = _variant(wizard, answer["workflow_steps"])
            assert _is_ready(variant, answer["workflow_steps"]) == (answer["missing"] == []), (left_out, answer)
            if left_out is not None:
                await go_on(client, path, draft, 1, **{left_out: fields[left_out]})
    both = await begin(client, CLOUD, **{**whole[0][2], "name": unique("d"), "provider_id": chosen["provider_id"],
                                         "cloud_model_id": chosen["id"]})  # fmt: skip
    assert not _is_ready((await client.get("/wizards/cloud_model_onboarding"))["trigger"], both["workflow_steps"])
    assert [one["field"] for one in both["missing"]] == ["uri"]


async def test_results_have_the_shape_that_is_promised(client: Client, hub: Hub) -> None:
    schemas = {one["type"]: one["result_schema"] for one in (await client.get("/wizards"))["data"]}
    local = await client.ended(await actors.import_hub(client, actors.publish(hub)))
    cloud = await begin(
        client, CLOUD, provider_type="cloud_model", provider_id=(await actors.provider(client))["id"], name=unique("c"),
        uri="openai/gpt4", modality="llm", trigger_workflow=True,
    )  # fmt: skip
    scan = await actors.scan(client, local["result"]["id"])
    for workflow in (local, cloud, scan):
        result, schema = workflow["result"], schemas[workflow["workflow_type"]]
        assert jsonschema_rs.is_valid(schema, result), result
        assert {"type", "id", "name", "href"} <= result.keys() == schema["properties"].keys()
        assert (await client.get(result["href"]))["id"] == result["id"]


# ---- lists


async def test_workflows_are_listed_filtered_sorted_and_paged(stepway: Stepway) -> None:
    _, person = await stepway.person("member")
    made = [await begin(person, HUB, step=3, name=f"alpha {count}") for count in range(5)]
    made.append(await begin(person, CLOUD, step=4, name="beta"))
    await person.post(f"/workflows/{made[0]['workflow_id']}/cancel")
    ids = [one["workflow_id"] for one in made]

    async def found(**query: Any) -> list[str]:
        listed = await person.get("/workflows", **query)
        assert listed["total"] >= len(listed["data"])
        return [one["workflow_id"] for one in listed["data"]]

    assert await found() == ids[::-1]
    assert await found(order_by="created_at") == ids
    assert await found(order_by="-updated_at") == [ids[0], *ids[:0:-1]]
    assert await found(type="cloud_model_onboarding") == [ids[5]]
    assert await found(status="cancelled") == [ids[0]]
    assert await found(search="alpha", status="in_progress", order_by="created_at") == ids[1:5]
    assert await found(search="BETA") == [ids[5]]
    assert await found(search="%") == []
    pages: list[str] = []
    query: Json = {"limit": 2, "order_by": "created_at"}
    while True:
        page = await person.get("/workflows", **query)
        assert page["total"] == 6
        pages += [one["workflow_id"] for one in page["data"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert pages == ids
    listed = await person.get("/workflows", limit=1)
    assert listed["data"][0] == await person.get(f"/workflows/{ids[5]}")
    cursor = listed["next_cursor"]
    foreign = await person.http.get("/jobs", params={"cursor": cursor})
    assert (foreign.status_code, foreign.json()["code"]) == (400, "invalid_cursor")
    for wrong in (
        {"order_by": "status"},
        {"order_by": "id; drop table"},
        {"limit": 201},
        {"limit": 0},
        {"status": "\0"},
    ):
        assert (await person.http.get("/workflows", params=wrong)).status_code == 400


@pytest.mark.parametrize(
    "path",
    ["/workflows", "/jobs", "/models", "/models?source=catalog", "/models/providers", "/templates", "/projects", "/credentials",
     "/icons", "/clusters", "/endpoints"],
)  # fmt: skip
async def test_every_list_has_one_shape(client: Client, path: str) -> None:
    listed = await client.get(path)
    assert {"object", "data", "total", "next_cursor"} <= listed.keys()
    assert listed["object"] == "list"
    for one in listed["data"]:
        for name, value in one.items():
            if name.endswith("_at") and value is not None:
                assert MOMENT.fullmatch(value), (name, value)
            if name == "id" and path not in ("/icons",):
                assert UUID.fullmatch(value)


async def test_answers_carry_moments_and_ids_in_one_form(client: Client, hub: Hub) -> None:
    ended = await client.ended(await actors.import_hub(client, actors.publish(hub)))
    for moment in (ended["created_at"], ended["updated_at"], ended["job"]["created_at"], ended["job"]["ended_at"]):
        assert MOMENT.fullmatch(moment)
    for step in ended["job"]["steps"]:
        assert MOMENT.fullmatch(step["started_at"])
        assert step["percent"] == 100
    again = await client.http.get(f"/workflows/{ended['workflow_id'].upper()}")
    assert again.json() == ended
    assert "ratelimit" in again.headers
    assert await go_on(client, HUB, ended, 1) == ended

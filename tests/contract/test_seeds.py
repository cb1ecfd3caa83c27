"""Every request of the seed document, as it stands there: comments removed, ids substituted, in an empty workspace."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from tests.contract import actors, seed
from tests.contract.running import Client, Json, Stepway
from tests.hub import Hub
from tests.testbed.certificates import as_yaml, kubeconfig

SEEDED = "Add cloud model to model zoo from seeded model"
BY_HAND = "Add cloud model to model zoo by manual entering"
LOCAL = "Add local model workflow"
DEPLOY_CLOUD, DEPLOY_LOCAL = "Deploy cloud model workflow", "Deploy local model workflow"
SCAN, ADD_WORKER = "Perform model security scan", "Add Worker to Endpoint"


@pytest.fixture(autouse=True)
async def emptied(client: Client) -> AsyncIterator[None]:
    """The examples share names: what one has made goes before the next."""
    yield
    for one in (await client.get("/endpoints"))["data"]:
        job = await client.delete(f"/endpoints/{one['id']}", 202)
        assert job is not None
        assert (await client.job_ended(job["id"]))["state"] == "succeeded"
    for collection in ("models", "clusters"):
        for one in (await client.get(f"/{collection}"))["data"]:
            if one.get("kind") != "local":
                await client.delete(f"/{collection}/{one['id']}")


async def replay(client: Client, path: str, heading: str, **ids: str) -> list[Json]:
    """Send a section's requests; `ids` are what its ids stand for. The fields of each answer are what has been sent so far."""
    answers: list[Json] = []
    sent: Json = {}
    for request in seed.requests(heading):
        body = {**request, **{name: value for name, value in ids.items() if request.get(name) is not None}}
        if "workflow_id" in body:
            body["workflow_id"] = answers[0]["workflow_id"]
        answer = await client.post(path, body)
        control = ("workflow_id", "workflow_total_steps", "step_number", "trigger_workflow")
        sent |= {name: value for name, value in body.items() if name not in control}
        assert answer["current_step"] == (
            body["step_number"] if answer["status"] == "in_progress" else answer["total_steps"]
        )
        assert sent.items() <= answer["workflow_steps"].items()
        assert set(answer["field_steps"]) == set(sent)
        answers.append(answer)
    return answers


def test_every_section_is_replayed_here() -> None:
    assert seed.headings() == {SEEDED, BY_HAND, LOCAL, DEPLOY_CLOUD, DEPLOY_LOCAL, SCAN, ADD_WORKER}


async def test_a_cloud_model_of_the_catalogue(client: Client) -> None:
    chosen = (await client.get("/models", source="catalog", search="gpt"))["data"][0]
    path = actors.CLOUD
    answers = await replay(client, path, SEEDED, provider_id=chosen["provider_id"], cloud_model_id=chosen["id"])
    *before, last = answers
    assert all(one["status"] == "in_progress" and one["job"] is None and one["result"] is None for one in before)
    assert last["status"] == "completed"
    assert last["total_steps"] == 6
    assert last["workflow_steps"]["provider"] == {
        "id": chosen["provider_id"], "name": chosen["provider"]["name"], "icon": chosen["icon"],
    }  # fmt: skip
    assert last["workflow_steps"]["cloud_model"]["id"] == chosen["id"]
    assert last["job"]["state"] == "succeeded"
    model = await client.get(last["result"]["href"])
    assert (model["name"], model["state"], model["uri"], model["modality"]) == ("abc", "active", chosen["uri"], ["llm"])
    assert [tag["name"] for tag in model["tags"]] == ["Tag1", "Tag2"]


async def test_a_cloud_model_entered_by_hand(client: Client) -> None:
    provider = await actors.provider(client)
    answers = await replay(client, actors.CLOUD, BY_HAND, provider_id=provider["id"])
    assert answers[2]["workflow_steps"]["cloud_model_id"] is None
    assert answers[2]["workflow_steps"]["cloud_model"] is None
    assert answers[2]["field_steps"]["cloud_model_id"] == 3
    assert answers[-1]["status"] == "completed"
    model = await client.get(answers[-1]["result"]["href"])
    assert (model["uri"], model["cloud_model_id"], model["provider_id"]) == ("openai/gpt4", None, provider["id"])


async def test_a_local_model_from_the_hub(client: Client, hub: Hub) -> None:
    config = json.dumps({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "max_position_embeddings": 131072})
    hub.add(
        "microsoft/Phi-3.5-mini-instruct", {"config.json": config.encode(), "model.safetensors": actors.safetensors()}
    )
    credential = await actors.credential(client)
    hub.tokens.add(actors.HUB_TOKEN)
    answers = await replay(client, actors.HUB, LOCAL, proprietary_credential_id=credential)
    last = answers[-1]
    assert last["status"] == "in_progress"
    assert last["job"]["kind"] == "import_model"
    assert last["workflow_steps"]["proprietary_credential"]["id"] == credential
    assert last["workflow_steps"]["icon"] is None
    ended = await client.ended(last)
    assert ended["status"] == "completed", ended
    model = await client.get(ended["result"]["href"])
    assert (model["name"], model["author"], model["state"]) == ("Microsoft phi local", "microsoft", "active")
    assert {file["path"] for file in model["files"]} == {"config.json", "model.safetensors"}


async def test_the_slip_in_the_local_model_is_another_workflow(client: Client) -> None:
    """Its fourth request names another workflow than the second and third: an id that nobody has is not found."""
    requests = seed.requests(LOCAL)
    assert requests[3]["workflow_id"] != requests[2]["workflow_id"]
    mine = await client.post(actors.HUB, requests[0])
    body = {**requests[3], "workflow_id": str(uuid4()), "proprietary_credential_id": await actors.credential(client)}
    problem = await client.refused(actors.HUB, body, 404, "not_found")
    assert problem["param"] == "workflow_id"
    assert "workflow" not in problem
    assert await client.get(f"/workflows/{mine['workflow_id']}") == mine


async def test_a_cloud_model_is_not_deployed_on_this_machine(client: Client) -> None:
    model = await actors.cloud_model(client)
    answers = await replay(
        client, actors.DEPLOY, DEPLOY_CLOUD, project_id=await actors.project(client), model_id=model["id"],
        credential_id=await actors.credential(client, "openai"), template_id=await _template(client),
        cluster_id=await actors.machine(client),
    )  # fmt: skip
    assert [one["current_step"] for one in answers] == [1, 2, 3, 4, 6]
    assert answers[3]["missing"] == [
        {"field": "cluster_id", "step": 6, "code": "missing", "message": "Cluster is required."}
    ]
    last = answers[-1]
    assert (last["status"], last["job"]["kind"], last["total_steps"]) == ("in_progress", "deploy_model", 7)
    ended = await client.ended(last)
    assert ended["status"] == "failed"
    assert "cloud model" in ended["reason"]
    assert ended["job"]["error"]["step"] == "verify"


async def test_a_local_model_is_scanned_deployed_and_gets_a_worker(client: Client) -> None:
    model = await actors.disk_model(client)
    [scan] = await replay(client, actors.SCAN, SCAN, model_id=model["id"])
    scanned = await client.ended(scan)
    assert scanned["status"] == "completed"
    assert scanned["result"]["status"] == "safe", scanned["result"]

    answers = await replay(
        client, actors.DEPLOY, DEPLOY_LOCAL, project_id=await actors.project(client), model_id=model["id"],
        template_id=await _template(client), cluster_id=await actors.machine(client),
    )  # fmt: skip
    assert [one["current_step"] for one in answers] == [1, 2, 3, 5]
    deployed = await client.ended(answers[-1])
    assert deployed["status"] == "completed", deployed
    assert deployed["current_step"] == deployed["total_steps"] == 6
    endpoint = await client.get(deployed["result"]["href"])
    assert (endpoint["name"], endpoint["slug"], endpoint["state"]) == ("test endpoint", "test-endpoint", "running")
    question = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    answer = await client.post(f"{deployed['result']['url']}/chat/completions", question)
    assert answer["choices"][0]["message"]["content"]

    before, last = await replay(client, actors.ADD, ADD_WORKER, endpoint_id=endpoint["id"])
    shown = before["workflow_steps"]
    assert shown["additional_concurrency"] == 10
    assert shown["added_concurrency"] == shown["additional_workers"] * shown["concurrency_per_worker"] >= 10
    assert shown["endpoint"] == {"id": endpoint["id"], "name": "test endpoint", "icon": None}
    added = await client.ended(last)
    assert added["status"] in ("completed", "failed")
    if added["status"] == "failed":  # a small machine has no room for it; the endpoint goes on as it was
        assert added["job"]["error"]["code"] == "insufficient_capacity"
    workers = await client.get(f"/endpoints/{endpoint['id']}/workers")
    more = shown["additional_workers"] if added["status"] == "completed" else 0
    assert workers["total"] == endpoint["replicas"]["desired"] + more
    assert (await client.get(f"/endpoints/{endpoint['id']}"))["state"] == "running"


@pytest.mark.parametrize("quoted", [True, False])
async def test_the_cluster_form_in_one_shot(client: Client, quoted: bool) -> None:
    fields = seed.form()
    assert fields.pop("configuration_file").startswith("@")
    assert fields["step_number"] == '"1"'
    if not quoted:
        fields = {name: value.strip('"') for name, value in fields.items()}
    content = as_yaml(kubeconfig(cluster={"server": "https://127.0.0.1:1"}))
    answer = await client.http.post(
        actors.CLUSTER, data=fields, files={"configuration_file": ("kube config.yaml", content)}
    )
    assert answer.status_code == 200, answer.text
    workflow: dict[str, Any] = answer.json()
    shown = workflow["workflow_steps"]
    assert (shown["name"], shown["icon"], shown["ingress_url"]) == (
        "Xeon Dev", "icons/providers/openai.png", "https://20.244.107.114:10001",
    )  # fmt: skip
    assert shown["configuration_file"] == {
        "name": "kube config.yaml", "size": len(content), "sha256": shown["configuration_file"]["sha256"],
    }  # fmt: skip
    assert "sekret-token" not in answer.text
    assert (workflow["status"], workflow["total_steps"], workflow["job"]["kind"]) == (
        "in_progress",
        3,
        "register_cluster",
    )
    ended = await client.ended(workflow)
    assert ended["status"] == "failed"
    assert ended["job"]["error"]["code"].startswith("cluster_")
    assert ended["reason"].startswith("Connect: ")


async def _template(client: Client) -> str:
    return str((await client.get("/templates"))["data"][0]["id"])


def test_the_stepway_of_these_tests_is_whole(stepway: Stepway) -> None:
    """The engine knows every job that the wizards start."""
    kinds = set(stepway.assembly.context.jobs.announced())
    assert kinds >= {"add_cloud_model", "import_model", "scan_model", "register_cluster", "deploy_model", "add_worker"}

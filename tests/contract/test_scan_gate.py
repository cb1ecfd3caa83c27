"""Scans, the gate that a deployment passes, and adding workers (rules 8 and 10)."""

import asyncio
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.contract import actors
from tests.contract.actors import ADD, DEPLOY, SCAN, begin, go_on
from tests.contract.running import Client, Json, Stepway, smollm2
from tests.hub import Hub


class _Marker:
    """What a harmful pickle is made of: loading it would make a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, (f"open({str(self._path)!r}, 'w')",))


@pytest.fixture(scope="module")
async def stepway(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stepway]:
    roots = tmp_path_factory.mktemp("models")
    settings = {"hf_endpoint": hub.url, "model_roots": [str(roots), str(smollm2())]}
    async with Stepway(tmp_path_factory.mktemp("stepway"), **settings) as stepway:
        yield stepway


@pytest.fixture
def root(stepway: Stepway) -> Path:
    return Path(stepway.assembly.settings.model_roots[0])


@pytest.fixture
async def harmful(client: Client, root: Path) -> Json:
    """A model whose scan finds something critical."""
    folder = root / uuid4().hex
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Marker(root / "marker")))
    return await actors.disk_model(client, folder)


async def refused(client: Client, model: Json, project_id: str, code: str) -> Json:
    body = {
        "workflow_total_steps": 6, "step_number": 5, "project_id": project_id, "model_id": model["id"],
        "endpoint_name": "gate", "deploy_config": actors.CONFIG, "cluster_id": await actors.machine(client),
        "trigger_workflow": True,
    }  # fmt: skip
    problem = await client.refused(DEPLOY, body, 409, code)
    assert problem["workflow"]["status"] == "in_progress"
    assert problem["workflow"]["job"] is None
    assert [(one["param"], one["code"], one["step"]) for one in problem["errors"]] == [("model_id", code, 1)]
    assert problem["param"] == "model_id"
    return problem


async def test_the_gate(client: Client, harmful: Json, root: Path) -> None:
    project_id = await actors.project(client)
    await refused(client, harmful, project_id, "scan_required")
    scanned = await actors.scan(client, harmful["id"])
    assert scanned["status"] == "completed"  # a scan that finds something has done its work
    result = scanned["result"]
    assert (result["type"], result["status"]) == ("scan", "critical")
    assert result["total_issues"] == sum(result["by_severity"].values()) >= 1
    assert {"title", "severity", "description", "file"} <= result["issues"][0].keys()
    assert await client.get(result["href"])
    problem = await refused(client, harmful, project_id, "scan_blocked")
    assert problem["findings"][0]["severity"] == "critical"
    assert problem["scan_id"] == result["id"]

    override = await client.post(f"/models/{harmful['id']}/scan-overrides", {"reason": "known to be harmless"}, 201)
    body = {"workflow_id": problem["workflow"]["workflow_id"], "step_number": 5, "trigger_workflow": True}
    started = await client.post(DEPLOY, body)
    assert (await client.ended(started))["status"] == "failed"  # no engine serves it; the gate let it through
    await client.delete(f"/models/{harmful['id']}/scan-overrides/{override['id']}")
    await refused(client, harmful, project_id, "scan_blocked")
    assert not (root / "marker").exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [("model.gguf", b"no model at all"), ("model.gguf", b"GGUF"), ("model.safetensors", actors.safetensors()[:-1])],
    ids=["garbage", "header", "data"],
)
async def test_a_file_that_is_no_model_does_not_become_one(client: Client, root: Path, name: str, data: bytes) -> None:
    folder = root / uuid4().hex
    folder.mkdir()
    (folder / name).write_bytes(data)
    workflow = await actors.import_disk(client, folder / name)
    assert workflow["status"] == "failed"
    error = workflow["job"]["error"]
    assert error["code"] == "model_file_damaged"
    assert error["message"].startswith(f"{name} is not a whole ")
    assert "get it again" in error["message"]
    assert (await client.get(f"/models/{workflow['job']['resource']['id']}"))["state"] == "failed"


async def test_a_project_may_do_without_scans(client: Client, harmful: Json) -> None:
    lax = await actors.project(client, policy={"require_scan": False, "block_severity": "critical"})
    started = await actors.deploy(client, harmful["id"], lax)
    assert (await client.ended(started))["job"]["error"]["code"] != "scan_required"
    await actors.scan(client, harmful["id"])
    await refused(client, harmful, lax, "scan_blocked")


async def test_only_admins_override(stepway: Stepway, harmful: Json) -> None:
    _, operator = await stepway.person("operator")
    await operator.refused(f"/models/{harmful['id']}/scan-overrides", {"reason": "please"}, 403, "forbidden")


async def test_a_cloud_model_is_not_scannable(client: Client) -> None:
    model = await actors.cloud_model(client)
    for trigger in (True, False):
        body = {"workflow_total_steps": 3, "step_number": 1, "model_id": model["id"], "trigger_workflow": trigger}
        problem = await client.refused(SCAN, body, 422, "not_scannable")
        assert problem["errors"] == [
            {"param": "model_id", "code": "not_scannable", "message": problem["detail"], "step": 1}
        ]


async def test_one_scan_of_a_model_at_a_time(client: Client, root: Path) -> None:
    folder = root / uuid4().hex
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(actors.safetensors())
    (folder / "config.json").write_text("{}")
    model = await actors.disk_model(client, folder)
    body = {"workflow_total_steps": 3, "step_number": 1, "model_id": model["id"], "trigger_workflow": True}
    answers = await asyncio.gather(*(client.http.post(SCAN, json=body) for _ in range(8)))
    started = [answer.json() for answer in answers if answer.status_code == 200]
    others = [answer.json() for answer in answers if answer.status_code != 200]
    jobs = {one["job"]["id"] for one in started}
    assert started
    for problem in others:
        assert (problem["status"], problem["code"]) == (409, "scan_in_progress")
        assert problem["job_id"] in jobs
        assert problem["job"]["id"] == problem["job_id"]
        assert problem["workflow"]["workflow_steps"]["model_id"] == model["id"]
    listed = (await client.get(f"/models/{model['id']}/scans"))["data"]
    assert {scan["status"] for scan in listed} <= {None, "safe", "error"}  # a scan that runs has no verdict
    for workflow in started:
        await client.ended(workflow)
    assert (await client.get(f"/models/{model['id']}/scans"))["total"] == len(started)
    assert (await client.ended(await client.post(SCAN, body)))["status"] == "completed"


async def test_a_model_that_is_not_there_yet_is_neither_scanned_nor_deployed(client: Client, hub: Hub) -> None:
    with actors.held(hub):
        started = await actors.import_hub(client, actors.publish(hub))
        model_id = started["job"]["resource"]["id"]
        body = {"workflow_total_steps": 3, "step_number": 1, "model_id": model_id, "trigger_workflow": True}
        problem = await client.refused(SCAN, body, 409, "model_not_ready")
        assert problem["workflow"]["workflow_steps"]["model"]["id"] == model_id
        await refused(client, {"id": model_id}, await actors.project(client), "model_not_ready")
    await client.ended(started)


async def test_recommendations_are_a_pure_look(client: Client) -> None:
    model = await actors.disk_model(client)
    draft = await begin(client, DEPLOY, model_id=model["id"])
    path = f"/clusters/recommended/{draft['workflow_id']}"
    answer = await client.http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (422, "missing_fields")
    steps = {error["param"]: error["step"] for error in answer.json()["errors"]}
    assert (steps["project_id"], steps["deploy_config.concurrent_requests"]) == (1, 3)
    await go_on(client, DEPLOY, draft, 3, project_id=await actors.project(client), deploy_config=actors.CONFIG)
    found = await client.get(path)
    assert (found["object"], found["total"], found["next_cursor"]) == ("list", len(found["data"]), None)
    for one in found["data"]:
        assert {"id", "cluster", "fits", "score", "reasons"} == one.keys()
        assert one["cluster"]["id"] == one["id"]
        assert 0 <= one["score"] <= 100
        assert one["reasons"]
    assert await client.get(path) == found
    big = {"concurrent_requests": 100_000, "avg_sequence_length": 100_000, "avg_context_length": 1}
    await go_on(client, DEPLOY, draft, 3, deploy_config=big)
    refusing = (await client.get(path))["data"]
    assert not any(one["fits"] for one in refusing if one["cluster"]["kind"] == "local")
    templated = await go_on(
        client, DEPLOY, draft, 2, deploy_config=None, template_id=(await client.get("/templates"))["data"][0]["id"]
    )
    assert {one["field"] for one in templated["missing"]} == {"endpoint_name", "cluster_id"}
    assert (await client.get(path))["data"]
    assert (await client.http.get(f"/clusters/recommended/{uuid4()}")).status_code == 404


async def test_workers_are_added_whole_and_one_job_at_a_time(client: Client) -> None:
    model = await actors.disk_model(client)
    assert (await actors.scan(client, model["id"]))["result"]["status"] == "safe"
    deployed = await client.ended(await actors.deploy(client, model["id"], await actors.project(client)))
    assert deployed["status"] == "completed", deployed
    endpoint_id = deployed["result"]["id"]
    draft = await begin(client, ADD, 5, endpoint_id=endpoint_id, additional_concurrency=1)
    shown = draft["workflow_steps"]
    assert shown["additional_concurrency"] == 1
    assert shown["additional_workers"] == 1
    assert shown["added_concurrency"] == shown["concurrency_per_worker"]
    for name in ("additional_workers", "added_concurrency", "concurrency_per_worker"):  # of a server's step
        echo = {"workflow_id": draft["workflow_id"], "step_number": 1, name: shown[name]}
        problem = await client.refused(ADD, echo, 422, "validation_failed")
        assert [(one["param"], one["code"]) for one in problem["errors"]] == [(name, "server_field")]
    more = await go_on(client, ADD, draft, 1, additional_concurrency=shown["concurrency_per_worker"] + 1)
    assert more["workflow_steps"]["additional_workers"] == 2
    huge = await go_on(client, ADD, draft, 1, additional_concurrency=10_000_000)
    body = {"workflow_id": draft["workflow_id"], "step_number": 3, "trigger_workflow": True}
    await client.refused(ADD, body, 409, "quota_exceeded")
    assert huge["workflow_steps"]["additional_workers"] > 1000
    started = await client.post(ADD, {**body, "additional_concurrency": 1})
    other = await begin(client, ADD, 5, endpoint_id=endpoint_id, additional_concurrency=1)
    locked = {"workflow_id": other["workflow_id"], "step_number": 3, "trigger_workflow": True}
    problem = await client.refused(ADD, locked, 409, "endpoint_locked")
    assert problem["workflow"]["job"] is None
    refused = await client.http.delete(f"/endpoints/{endpoint_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "endpoint_locked")
    ended = await client.ended(started)
    assert ended["status"] == "completed", ended
    assert (ended["result"]["id"], ended["result"]["replicas"]) == (endpoint_id, 2)
    job = await client.delete(f"/endpoints/{endpoint_id}", 202)
    assert job is not None
    assert (await client.job_ended(job["id"]))["state"] == "succeeded"
    await client.refused(ADD, {**locked, "step_number": 2}, 422, "reference_not_found")

"""Settings of an endpoint's engine on their way: in at the wizard and at PATCH, kept, shown, given to the job, or refused."""

from typing import Any
from uuid import UUID

import jsonschema_rs
import pytest
from sqlalchemy import text

from services.app.endpoints.outcomes import UpdateOutcome
from services.app.endpoints.tables import EndpointRow
from shared.contracts.deployments import FOLLOWED, Deployment, DeploySpec, Tuning, UpdateSpec
from tests.services.app import rows
from tests.services.app.authorization import DIGEST
from tests.services.app.wizards.test_preview import Drafts, drafts

__all__ = ["drafts"]

Json = dict[str, Any]
DEPLOY = "/models/deploy-workflow"
TUNING: Json = {
    "max_context": 4096, "dtype": "bfloat16", "gpu_memory_share": 0.8, "tensor_parallel": 2, "tool_parser": "hermes",
    "lora": {"sql": "adapters/sql"},
}  # fmt: skip


async def step(drafts: Drafts, draft: UUID, **fields: Any) -> Any:
    body = {"workflow_id": str(draft), "step_number": 5, **fields}
    return await drafts.client.post(DEPLOY, json=body, headers=drafts.person.headers)


async def missing(drafts: Drafts, **changes: Any) -> list[tuple[str, str, int | None]]:
    draft = await drafts.draft(**changes)
    shown = (await drafts.client.get(f"/workflows/{draft}", headers=drafts.person.headers)).json()
    return [(one["field"], one["message"], one["step"]) for one in shown["missing"]]


async def input_of(drafts: Drafts, job_id: str) -> Json:
    async with drafts.context.database.statement() as connection:
        found = await connection.execute(text("SELECT input FROM jobs.job WHERE id = :id"), {"id": job_id})
        return dict(found.scalar_one())


async def endpoint(drafts: Drafts, **values: Any) -> UUID:
    desired = {"replicas": 2, "plan": {"engine": "vllm"}, "concurrency": 4}
    row = rows.endpoint(
        drafts.project,
        drafts.model,
        drafts.cluster,
        **{"engine": "vllm", "desired": desired, "digest": DIGEST, **values},
    )
    row.deploy_config = {"concurrent_requests": 1, "avg_sequence_length": 64, "avg_context_length": 64}
    await rows.insert(drafts.context.database, row)
    return row.id


async def patch(drafts: Drafts, endpoint_id: UUID, **fields: Any) -> Any:
    return await drafts.client.patch(f"/endpoints/{endpoint_id}", json=fields, headers=drafts.person.headers)


async def test_what_a_draft_says_is_what_the_job_and_the_endpoint_get(drafts: Drafts) -> None:
    draft = await drafts.draft()
    shown = (await step(drafts, draft, tuning=TUNING)).json()
    assert (shown["workflow_steps"]["tuning"], shown["missing"]) == (TUNING, [])
    assert (await drafts.ask(draft)).status_code == 200
    assert drafts.clusters.specs[-1].tuning == Tuning.model_validate(TUNING)
    triggered = await step(drafts, draft, trigger_workflow=True)
    assert triggered.status_code == 200, triggered.text
    job = triggered.json()["job"]
    spec = DeploySpec.model_validate(await input_of(drafts, job["id"]))
    assert spec.tuning.kept() == TUNING
    path = f"/endpoints/{spec.endpoint_id}"
    made = (await drafts.client.get(path, headers=drafts.person.headers)).json()
    assert made["tuning"] == TUNING


async def test_without_settings_all_is_as_before_there_were_any(drafts: Drafts) -> None:
    draft = await drafts.draft()
    job = (await step(drafts, draft, trigger_workflow=True)).json()["job"]
    spec = DeploySpec.model_validate(await input_of(drafts, job["id"]))
    assert spec.tuning.given == []
    async with drafts.context.database.transaction() as session:  # as a row of before is after the migration
        row = await session.get_one(EndpointRow, spec.endpoint_id)
        assert row.tuning == {}


@pytest.mark.parametrize(
    ("tuning", "param", "code"),
    [
        ({"max_context": 1}, "tuning.max_context", "out_of_range"),
        ({"quantization": "fp8 --trust-remote-code"}, "tuning.quantization", "not_allowed"),
        ({"tool_parser": "../plugin.py"}, "tuning.tool_parser", "not_allowed"),
        ({"lora": {"a": "../../etc"}}, "tuning.lora.a", "invalid_format"),
        ({"trust_remote_code": True}, "tuning.trust_remote_code", "unknown_field"),
        ({"gpu_memory_share": 1.0}, "tuning.gpu_memory_share", "out_of_range"),
        ([], "tuning", "invalid_type"),
    ],
)
async def test_hostile_and_odd_settings_are_faults_of_the_step(
    drafts: Drafts, tuning: Any, param: str, code: str
) -> None:
    draft = await drafts.draft()
    refused = await step(drafts, draft, tuning=tuning)
    assert refused.status_code == 422
    (fault,) = refused.json()["errors"]
    assert (fault["param"], fault["code"], fault["step"]) == (param, code, 3)
    name = "--trust-remote-code=\u202e" * 30
    odd = await step(drafts, draft, tuning={"lora": {name: "a"}})
    assert odd.status_code == 422
    assert "trust-remote-code" not in odd.text
    served = await endpoint(drafts)
    assert (await patch(drafts, served, tuning=tuning)).status_code == 422


async def test_the_descriptor_and_the_description_of_the_api_know_the_settings(drafts: Drafts) -> None:
    wizard = (await drafts.client.get("/wizards/model_deployment", headers=drafts.person.headers)).json()
    schema = next(one["schema"] for one in wizard["steps"] if one["key"] == "config")
    good = {"endpoint_name": "a", "tuning": TUNING}
    assert jsonschema_rs.is_valid(schema, good)
    for name, value in (("dtype", "int8"), ("lora", {"a": "-b"}), ("max_context", 0), ("other", 1)):
        assert not jsonschema_rs.is_valid(schema, {**good, "tuning": {name: value}})
    described = (await drafts.client.get("/openapi.json")).json()
    body = described["paths"][DEPLOY]["post"]["requestBody"]["content"]["application/json"]["schema"]
    (settings,) = [one for one in body["properties"]["tuning"]["anyOf"] if one.get("type") == "object"]
    assert settings["properties"].keys() == Tuning.model_fields.keys() == FOLLOWED["vllm"]
    changed = described["components"]["schemas"]["EndpointChange"]["properties"]
    assert "tuning" in changed


async def test_an_engine_that_is_known_to_have_no_such_setting_is_known_in_the_draft(drafts: Drafts) -> None:
    machine = rows.cluster(kind="local")
    cloud = rows.model(provider_type="cloud_model", uri="openai/x", project_id=drafts.project)
    await rows.insert(drafts.context.database, machine, cloud)
    said = await missing(drafts, cluster_id=str(machine.id), tuning=TUNING)
    names = "dtype, gpu_memory_share, tensor_parallel, tool_parser, lora"
    assert said == [("tuning", f"The engine llama_cpp has no such setting: {names}.", 3)]
    assert await missing(drafts, cluster_id=str(machine.id), tuning={"max_context": 512}) == []
    said = await missing(drafts, model_id=str(cloud.id), tuning={"max_context": 512})
    assert ("tuning", "The engine litellm has no such setting: max_context.", 4) in said
    for name in ("chat", "My chat"):
        own = await missing(drafts, endpoint_name=name, tuning={"lora": {name.replace("My ", "my-"): "a"}})
        assert [one[0] for one in own] == ["tuning"]
    unplaced = await drafts.draft(cluster_id=None, tuning=TUNING)
    path = f"/clusters/recommended/{unplaced}"
    judged = (await drafts.client.get(path, headers=drafts.person.headers)).json()["data"]
    assert {one["id"]: one["fits"] for one in judged} == {str(machine.id): False, str(drafts.cluster): True}
    assert judged[-1]["reasons"] == [f"The engine llama_cpp has no such setting: {names}."]
    draft = await drafts.draft(cluster_id=str(machine.id), tuning=TUNING)
    refused = await step(drafts, draft, trigger_workflow=True)
    assert (refused.status_code, refused.json()["code"]) == (422, "missing_fields")
    assert [(one["param"], one["code"]) for one in refused.json()["errors"]] == [("tuning", "inconsistent")]


async def test_a_change_names_single_settings_and_null_gives_one_back(drafts: Drafts) -> None:
    served = await endpoint(drafts, tuning=TUNING)
    answer = await patch(drafts, served, tuning={"gpu_memory_share": 0.7, "dtype": None, "lora": {"b": "c"}})
    assert answer.status_code == 202, answer.text
    spec = UpdateSpec.model_validate(await input_of(drafts, answer.json()["id"]))
    wanted = {**TUNING, "gpu_memory_share": 0.7, "lora": {"b": "c"}}
    del wanted["dtype"]
    assert spec.tuning.kept() == wanted
    assert (spec.before.spec.tuning.kept(), spec.replicas) == (TUNING, 2)
    async with drafts.context.database.transaction() as session:
        row = await session.get_one(EndpointRow, served)
        assert row.tuning == TUNING  # until it is served
        made = Deployment(
            endpoint_id=served, engine="vllm", replicas=2, concurrency=1, context_tokens=1, memory_bytes=1, generation=2
        )
        job: Any = {"state": "succeeded", "attempt": 1, "result": made.model_dump(mode="json"), "error": None}
        UpdateOutcome(drafts.context).apply(row, job, spec.model_dump(mode="json"))
        assert row.tuning == wanted


async def test_other_changes_leave_the_settings(drafts: Drafts) -> None:
    served = await endpoint(drafts, tuning=TUNING)
    answer = await patch(drafts, served, deploy_config={"concurrent_requests": 2})
    assert answer.status_code == 202, answer.text
    assert UpdateSpec.model_validate(await input_of(drafts, answer.json()["id"])).tuning.kept() == TUNING


async def test_a_change_that_the_engine_cannot_follow_is_refused_at_once(drafts: Drafts) -> None:
    machine = rows.cluster(kind="local")
    await rows.insert(drafts.context.database, machine)
    here = await endpoint(drafts, engine="llama_cpp")
    moved = rows.endpoint(
        drafts.project, drafts.model, machine.id, engine="llama_cpp", desired={"replicas": 1, "plan": {}}
    )
    await rows.insert(drafts.context.database, moved)
    for served in (here, moved.id):
        refused = await patch(drafts, served, tuning={"tensor_parallel": 2, "max_context": 512})
        said = refused.json()
        assert (refused.status_code, said["code"], said["param"]) == (422, "tuning_unsupported", "tuning")
        assert said["detail"] == "The engine llama_cpp has no such setting: tensor_parallel."
    assert (await patch(drafts, here, tuning={"max_context": 512, "tensor_parallel": None})).status_code == 202
    vllm = await endpoint(drafts)
    own = await drafts.client.get(f"/endpoints/{vllm}", headers=drafts.person.headers)
    refused = await patch(drafts, vllm, tuning={"lora": {own.json()["name"]: "a"}})
    assert refused.json()["code"] == "tuning_unsupported"

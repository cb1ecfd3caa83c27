"""What several tests of the contract make first, by the API itself."""

from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.contract.running import Client, Json, smollm2

DISK, HUB, SCAN = "/models/local-model-workflow", "/models/local-model-workflow", "/models/security-scan"
CLOUD, DEPLOY, CLUSTER, ADD = (
    "/models/cloud-model-workflow",
    "/models/deploy-workflow",
    "/clusters/clusters",
    "/endpoints/add-worker",
)
ICON = "icons/providers/openai.png"
HUB_TOKEN = "hf_" + "a" * 34
CONFIG = {"concurrent_requests": 1, "avg_sequence_length": 50, "avg_context_length": 50}


def unique(prefix: str) -> str:
    return f"{prefix} {uuid4().hex[:10]}"


async def begin(client: Client, path: str, total: int = 6, step: int = 1, **fields: Any) -> Json:
    return await client.post(path, {"workflow_total_steps": total, "step_number": step, **fields})


async def go_on(client: Client, path: str, workflow: Json, step: int, **fields: Any) -> Json:
    return await client.post(path, {"workflow_id": workflow["workflow_id"], "step_number": step, **fields})


async def project(client: Client, **fields: Any) -> str:
    made = await client.post("/projects", {"name": unique("project"), **fields}, 201)
    return str(made["id"])


async def provider(client: Client, key: str = "openai") -> Json:
    listed = await client.get("/models/providers", type="cloud_model", limit=200)
    return next(one for one in listed["data"] if one["key"] == key)


async def cloud_model(client: Client, **fields: Any) -> Json:
    """A cloud model, entered by hand."""
    workflow = await begin(
        client, CLOUD, provider_type="cloud_model", provider_id=(await provider(client))["id"], name=unique("cloud"),
        uri="openai/gpt4", modality="llm", trigger_workflow=True, **fields,
    )  # fmt: skip
    return await client.get(workflow["result"]["href"])


async def import_disk(client: Client, path: Path, **fields: Any) -> Json:
    """The workflow of an import from disk, when it has ended."""
    workflow = await begin(
        client, DISK, modality="llm", provider_type="disk", name=unique("disk"), uri=str(path), icon=ICON,
        trigger_workflow=True, **fields,
    )  # fmt: skip
    return await client.ended(workflow)


async def disk_model(client: Client, path: Path | None = None, **fields: Any) -> Json:
    """A model from disk; by default the small one that can really be served."""
    path = path or smollm2() / "SmolLM2-135M-Instruct.Q4_1.gguf"
    workflow = await import_disk(client, path, **fields)
    assert workflow["status"] == "completed", workflow
    return await client.get(workflow["result"]["href"])


async def scan(client: Client, model_id: str) -> Json:
    workflow = await begin(client, SCAN, 3, model_id=model_id, trigger_workflow=True)
    return await client.ended(workflow)


async def machine(client: Client) -> str:
    listed = await client.get("/clusters", kind="local")
    return str(listed["data"][0]["id"])


async def deploy(client: Client, model_id: str, project_id: str, **fields: Any) -> Json:
    """The answer to a deployment's trigger on this machine, sent as one step."""
    values = {
        "endpoint_name": unique("endpoint"), "deploy_config": CONFIG, "cluster_id": await machine(client), **fields,
    }  # fmt: skip
    return await begin(client, DEPLOY, project_id=project_id, model_id=model_id, trigger_workflow=True, **values)


async def credential(client: Client, type_: str = "huggingface", **fields: Any) -> str:
    values = {"huggingface": {"token": HUB_TOKEN}}.get(type_, {"api_key": "sk-" + "b" * 40})
    body = {"name": unique("credential"), "type": type_, "fields": values, **fields}
    return str((await client.post("/credentials", body, 201))["id"])

"""What several tests of the contract make first, by the API itself."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.contract.running import Client, Json, smollm2
from tests.hub import Hub
from tests.serving import Fault

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


# ---- a hub's model: its import can be held, and can fail until the repository is there


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(16)


def publish(hub: Hub, name: str | None = None) -> str:
    """A small repository on the hub; its name."""
    name = name or f"people/model-{uuid4().hex[:10]}"
    config = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 2048})
    hub.add(name, {"config.json": config.encode(), "model.safetensors": safetensors()})
    return name


async def import_hub(client: Client, uri: str, **fields: Any) -> Json:
    """The answer to the trigger of an import from the hub."""
    values = {"modality": "llm", "provider_type": "hugging_face", "name": unique("hub"), "uri": uri, **fields}
    return await begin(client, HUB, trigger_workflow=True, **values)


async def failed_import(client: Client) -> tuple[Json, str]:
    """A workflow that has failed, and the repository that it misses."""
    name = f"people/missing-{uuid4().hex[:10]}"
    workflow = await client.ended(await import_hub(client, name))
    assert workflow["status"] == "failed", workflow
    return workflow, name


@contextlib.contextmanager
def held(hub: Hub) -> Iterator[None]:
    """Imports from the hub do not end while this lasts."""
    hub.resume.clear()
    hub.fail(Fault("config.json", times=1000, pause_after=1, method="GET"))
    try:
        yield
    finally:
        hub.calm()
        hub.resume.set()

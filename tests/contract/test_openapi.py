"""Schemathesis on the whole API, as an admin, within a minute: no fault of ours, and every refusal a whole problem.

It runs on a Stepway of its own: what it makes, changes and deletes is nobody else's. Left out are what would end the
test itself (the admin's own key), what never ends (streams), and what the gateway documents elsewhere.
"""

import asyncio
import contextlib
import json
import time
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.transport import Response

from tests.contract import actors
from tests.contract.running import Client, Json, Stepway
from tests.hub import Hub

BUDGET = 45.0  # seconds for all operations together
EXAMPLES = 30  # for each operation, fewer when the time is up
AT_LEAST = 2
STREAMS = ("/events", "/logs")
MODEL_FILES = "/endpoints/{endpoint_id}/model-files"  # has tokens of its own; without one nothing is there
FLOW = "workflow_id of a flow"
OPEN = {"/healthz", "/readyz", "/docs/errors", "/login", "/icons/{path}", MODEL_FILES, f"{MODEL_FILES}/{{number}}"}
PROBLEM = "application/problem+json"
ERROR = {"message", "type", "param", "code"}


@pytest.fixture
async def ids(client: Client, hub: Hub) -> dict[str, str]:
    """Ids that exist, so that more than 404 is met."""
    draft = await actors.begin(client, actors.DEPLOY)
    ended = await client.ended(await actors.import_hub(client, actors.publish(hub)))
    flow = {"name": "f", "tasks": [{"ref": "size", "type": "text.size", "input": {"text": "x"}}]}
    made = await client.post("/flow/workflows", flow, 201)
    execution = await client.post(f"/flow/workflows/{made['workflow_id']}/execute", {}, 202)
    file = (await client.http.post("/flow/files", content=b"bytes", headers={"Content-Type": "text/plain"})).json()
    return {
        FLOW: made["workflow_id"], "execution_id": execution["execution_id"], "task": "size", "number": "1",
        "workflow_id": draft["workflow_id"], "job_id": ended["job"]["id"], "model_id": ended["result"]["id"],
        "project_id": await actors.project(client), "credential_id": await actors.credential(client),
        "cluster_id": await actors.machine(client), "type": "model_deployment",
        "file_id": file["artifact_id"], "template_id": (await client.get("/templates"))["data"][0]["id"],
    }  # fmt: skip


async def test_a_client_can_be_made_from_the_description(client: Client) -> None:
    """Keys, statuses of refusals, headers and all paths are told."""
    described = await client.get("/openapi.json")
    assert set(described["components"]["securitySchemes"]) == {"key", "cookie"}
    assert described["security"]
    paths = described["paths"]
    assert {"get", "post"} == set(paths["/clusters/clusters"])
    assert "post" in paths["/endpoints/{endpoint_id}/v1/chat/completions"]
    create, change = paths["/projects"]["post"], paths["/projects/{project_id}"]["patch"]
    assert {"idempotency-key"} <= {one["name"] for one in create["parameters"]}
    assert {"if-match"} <= {one["name"] for one in change["parameters"]}
    assert {"201", "400", "401", "403", "409", "413", "415", "422", "429", "503"} <= set(create["responses"])
    assert {"404", "412"} <= set(change["responses"])
    assert paths["/healthz"]["get"]["security"] == []
    for path, operations in paths.items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                if status >= "4":
                    assert answer["$ref"].endswith("/OpenAIError" if "/v1/" in path else "/Problem"), (method, path)


async def test_the_description_is_open_and_valid(stepway: Stepway, client: Client) -> None:
    described = await client.get("/openapi.json")
    assert described["openapi"].startswith("3.1")
    own = [operation for path in described["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in own}) == len(own)
    for wizard in (await client.get("/wizards"))["data"]:
        body = described["paths"][wizard["path"]]["post"]["requestBody"]["content"]
        assert ("multipart/form-data" in body) == (wizard["encoding"] == "multipart")
        for content in body.values():
            jsonschema_rs.meta.validate(content["schema"])
            assert content["schema"]["required"] == ["step_number"]
    async with httpx.AsyncClient(base_url=stepway.url, trust_env=False) as nobody:
        assert (await nobody.get("/openapi.json")).status_code == 200
        for path, methods in described["paths"].items():
            for method in methods:
                answer = await nobody.request(method, path, json={})
                assert answer.status_code == 401 or path in OPEN, (method, path, answer.status_code)


@pytest.mark.timeout(900)
async def test_no_request_makes_a_fault(stepway: Stepway, client: Client, ids: dict[str, str]) -> None:
    described = await client.get("/openapi.json")
    found = await asyncio.to_thread(_run, described, stepway.url, client.http.headers["Authorization"], ids)
    assert found["asked"] > 150, found
    assert found["faults"] == []
    assert {200, 404, 422} <= set(found["statuses"])


def _run(described: Json, url: str, authorization: str, ids: dict[str, str]) -> Json:
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=url)
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    chosen = [one for one in operations if _may_be_asked(one.method, one.path)]
    chosen.sort(key=lambda one: one.method == "delete")  # what the others ask for goes last
    found: Json = {"asked": 0, "faults": [], "statuses": []}
    end = time.monotonic() + BUDGET
    for number, operation in enumerate(chosen):
        share = (end - time.monotonic()) / (len(chosen) - number)
        _ask(operation, authorization, ids, time.monotonic() + share, found)
    return found


def _may_be_asked(method: str, path: str) -> bool:
    is_stream = path.endswith(STREAMS)
    is_own_access = path.startswith(("/users", "/keys", "/me", "/login", "/logout")) and method.upper() != "GET"
    return not is_stream and not is_own_access


class TimeUp(Exception):
    """Ends the making of requests, which takes longer than the requests."""


def _ask(operation: Any, authorization: str, ids: dict[str, str], end: float, found: Json) -> None:
    headers = {"Authorization": authorization}
    before = found["asked"]

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        if time.monotonic() > end and found["asked"] >= before + AT_LEAST:
            raise TimeUp
        _aim(case, ids, found["asked"])
        answer = case.call(headers=headers, timeout=20)
        found["asked"] += 1
        found["statuses"].append(answer.status_code)
        if wrong := _fault(answer):
            found["faults"].append(f"{case.method} {case.formatted_path} {case.query} {case.body!r}: {wrong}"[:600])

    with contextlib.suppress(TimeUp):
        ask()


def _aim(case: Any, ids: dict[str, str], count: int) -> None:
    """Of what was made up, replace some by what exists, so that more than the first refusal is met."""
    if count % 4 == 0:
        return
    if case.path.startswith("/flow/"):
        ids = {**ids, "workflow_id": ids[FLOW]}
    for name in set(case.path_parameters or {}) & ids.keys():
        case.path_parameters[name] = ids[name]
    if case.headers and count % 4 != 1:
        case.headers.pop("If-Match", None)
    if "wait" in (case.query or {}):
        case.query["wait"] = 0
    if isinstance(case.body, dict) and "step_number" in case.body and count % 4 != 1:
        known = {"workflow_id", "workflow_total_steps", "step_number"}
        fields = {name: value for name, value in case.body.items() if name not in known}
        named = {name: value for name, value in ids.items() if name in fields}
        case.body = {"workflow_total_steps": 6, "step_number": 1, **fields, **named}


def _fault(answer: Response) -> str | None:
    if answer.status_code >= 500 and answer.status_code != 503:
        return f"{answer.status_code} {answer.text[:200]}"
    kind = answer.headers.get("content-type", [""])[0]
    if answer.status_code >= 400:
        if "/v1/" in (answer.request.url or "") and kind == "application/json":
            return (
                None if set(json.loads(answer.text)["error"]) == ERROR else f"no error of OpenAI's: {answer.text[:200]}"
            )
        if kind != PROBLEM:
            return f"{answer.status_code} is no problem but {kind}"
        problem = json.loads(answer.text)
        if problem["status"] != answer.status_code or problem["type"] != f"/docs/errors#{problem['code']}":
            return f"a problem that contradicts itself: {answer.text[:200]}"
    return None

"""Credentials: sealed at rest, never shown, whose they are, and what keeps them."""

import json
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from services.app.context import AppContext
from services.app.credentials import service
from services.app.models.catalogue import credential_types
from shared.errors import Problem
from shared.security.envelope import SealError
from tests.services.app import rows
from tests.services.app.conftest import People, Person, caller_for

SECRET = "sk-hunter2-marker"
OPENAI = {"name": "mine", "type": "openai", "fields": {"api_key": SECRET, "base_url": "https://llm.example/v1"}}


async def make(client: httpx.AsyncClient, person: Person, **body: Any) -> httpx.Response:
    return await client.post("/credentials", json={**OPENAI, **body}, headers=person.headers)


async def test_the_secret_is_kept_and_never_shown(
    client: httpx.AsyncClient, people: People, app_context: AppContext
) -> None:
    ada = await people.add("member")
    headers = {**ada.headers, "Idempotency-Key": "k"}
    made = await client.post("/credentials", json=OPENAI, headers=headers)
    view = made.json()
    path = f"/credentials/{view['id']}"
    assert (made.status_code, made.headers["location"]) == (201, path)
    assert (view["fields"], view["secrets"]) == ({"base_url": "https://llm.example/v1"}, ["api_key"])
    assert (await client.get(path, headers=ada.headers)).json() == view
    answers = [
        made, await client.post("/credentials", json=OPENAI, headers=headers), await client.get(path, headers=ada.headers),
        await client.get("/credentials?search=mine", headers=ada.headers),
        await client.patch(path, json={"name": "other"}, headers=ada.headers),
    ]  # fmt: skip
    assert all(answer.status_code < 300 and SECRET not in answer.text for answer in answers)
    async with app_context.database.transaction() as session:
        for table in ("credential", "audit", "idempotency"):
            stored = (await session.execute(text(f"SELECT to_jsonb(t)::text FROM platform.{table} t"))).scalars().all()
            assert stored
            assert SECRET not in str(stored)
            assert SECRET.encode().hex() not in str(stored)
        revealed = await service.reveal(session, app_context.keyring, UUID(view["id"]))
    assert revealed == OPENAI["fields"]
    assert (await client.get(path, headers=ada.headers)).json()["last_used_at"] is not None


async def test_a_sealed_value_opens_only_in_its_own_row(
    client: httpx.AsyncClient, people: People, app_context: AppContext
) -> None:
    ada = await people.add("member")
    ids = [(await make(client, ada, name=name)).json()["id"] for name in ("a", "b")]
    async with app_context.database.transaction() as session:
        swap = "UPDATE platform.credential SET sealed = (SELECT sealed FROM platform.credential WHERE id = :a) WHERE id = :b"
        await session.execute(text(swap), {"a": ids[0], "b": ids[1]})
        with pytest.raises(SealError):
            await service.reveal(session, app_context.keyring, UUID(ids[1]))


async def test_reveal_of_what_is_gone(app_context: AppContext) -> None:
    async with app_context.database.transaction() as session:
        with pytest.raises(Problem, match="not_found"):
            await service.reveal(session, app_context.keyring, uuid4())


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"fields": {}}, "fields.api_key", "missing"),
        ({"fields": {"api_key": ""}}, "fields.api_key", "missing"),
        ({"fields": {"api_key": f"{SECRET} with spaces"}}, "fields.api_key", "invalid"),
        ({"fields": {"api_key": SECRET, "base_url": f"https://ada:{SECRET}@x"}}, "fields.base_url", "invalid"),
        ({"fields": {"api_key": SECRET, "token": SECRET}}, "fields.token", "unknown_field"),
        ({"fields": {"api_key": 5}}, "fields.api_key", "invalid_type"),
        ({"fields": {"api_key": {"value": SECRET}}}, "fields.api_key", "invalid_type"),
        ({"fields": SECRET}, "fields", "invalid_type"),
        ({"type": SECRET}, "type", "not_allowed"),
        ({"name": "  "}, "name", "too_short"),
        ({"project_id": str(uuid4())}, "project_id", "reference_not_found"),
        ({"sealed": SECRET}, "sealed", "unknown_field"),
    ],
)
async def test_bad_credentials(
    client: httpx.AsyncClient, people: People, body: dict[str, Any], param: str, code: str
) -> None:
    answer = await make(client, await people.add("member"), **body)
    assert answer.status_code == 422
    assert (answer.json()["errors"][0]["param"], answer.json()["errors"][0]["code"]) == (param, code)
    assert SECRET not in answer.text


@pytest.mark.parametrize("kind", [kind.key for kind in credential_types()])
async def test_every_type_can_be_kept(
    client: httpx.AsyncClient, people: People, app_context: AppContext, kind: str
) -> None:
    examples = {
        "token": "hf_abc", "api_key": "key", "base_url": "https://x.example", "endpoint": "https://x.openai.azure.com",
        "api_version": "2024-06-01", "access_key_id": "AKIA0123456789ABCDEF", "secret_access_key": "s", "session_token": "t",
        "region": "eu-west-1", "service_account_json": json.dumps({"type": "service_account"}), "project": "my-project",
        "location": "europe-west4",
    }  # fmt: skip
    described = {
        one["key"]: one
        for one in (await client.get("/credential-types", headers=(await people.add("viewer")).headers)).json()["data"]
    }
    fields = {one["name"]: examples[one["name"]] for one in described[kind]["fields"]}
    assert set(described[kind]["schema"]["properties"]) == set(fields)
    made = (await make(client, await people.add("member"), type=kind, fields=fields)).json()
    secret = {one["name"] for one in described[kind]["fields"] if one["secret"]}
    assert (set(made["secrets"]), set(made["fields"])) == (secret, set(fields) - secret)
    async with app_context.database.transaction() as session:
        assert await service.reveal(session, app_context.keyring, UUID(made["id"])) == fields


async def test_new_fields_replace_all_of_them(
    client: httpx.AsyncClient, people: People, app_context: AppContext
) -> None:
    ada = await people.add("member")
    made = (await make(client, ada)).json()
    path = f"/credentials/{made['id']}"
    # A secret must not be led to another address by someone who does not know it.
    moved = await client.patch(path, json={"fields": {"base_url": "https://evil.example"}}, headers=ada.headers)
    assert (moved.status_code, moved.json()["errors"][0]["param"]) == (422, "fields.api_key")
    changed = await client.patch(path, json={"fields": {"api_key": "new"}}, headers=ada.headers)
    assert (changed.json()["fields"], changed.json()["revision"]) == ({}, 2)
    async with app_context.database.transaction() as session:
        assert await service.reveal(session, app_context.keyring, UUID(made["id"])) == {"api_key": "new"}
    stale = await client.patch(path, json={"name": "x"}, headers={**ada.headers, "If-Match": '"1"'})
    assert stale.status_code == 412
    assert (await client.patch(path, json={}, headers=ada.headers)).json()["revision"] == 2


async def test_ones_own_are_for_oneself(client: httpx.AsyncClient, people: People) -> None:
    ada, bob, operator, admin = [await people.add(role) for role in ("member", "member", "operator", "admin")]
    made = (await make(client, ada)).json()
    path = f"/credentials/{made['id']}"
    for other in (bob, operator):
        assert (await client.get("/credentials", headers=other.headers)).json()["total"] == 0
        for method in ("GET", "DELETE"):
            assert (await client.request(method, path, headers=other.headers)).status_code == 404
    assert (await client.get("/credentials", headers=admin.headers)).json()["data"] == [made]
    assert (await make(client, bob)).status_code == 201  # names are of their owner
    assert (await make(client, ada)).json()["code"] == "name_taken"
    assert (await client.delete(path, headers=ada.headers)).status_code == 204


async def test_a_projects_credentials(client: httpx.AsyncClient, people: People, app_context: AppContext) -> None:
    project, other = await people.project("p"), await people.project("q")
    ada = await people.add("member", projects={project: "member"})
    bob = await people.add("member", projects={project: "member", other: "member"})
    reader, outsider = await people.add("member", projects={project: "viewer"}), await people.add("member")
    assert (await make(client, reader, project_id=str(project))).status_code == 403
    shared = (await make(client, ada, project_id=str(project))).json()
    own = (await make(client, bob, type="huggingface", fields={"token": "hf_x"})).json()
    path = f"/credentials/{shared['id']}"
    assert (await client.get(path, headers=reader.headers)).json() == shared
    assert (await client.get(path, headers=outsider.headers)).status_code == 404
    refused = await client.patch(path, json={"name": "x"}, headers=reader.headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_owner")

    async def listed(query: str) -> set[str]:
        data = (await client.get(f"/credentials{query}", headers=bob.headers)).json()["data"]
        return {one["id"] for one in data}

    assert await listed("") == await listed(f"?project_id={project}") == {shared["id"], own["id"]}
    assert await listed(f"?project_id={other}") == {own["id"]}
    assert await listed("?type=huggingface") == {own["id"]}
    async with app_context.database.transaction() as session:
        caller = caller_for(bob, "member", {project: "member", other: "member"})
        await service.check_usable(session, caller, UUID(shared["id"]), project)
        await service.check_usable(session, caller, UUID(own["id"]), other)
        for credential_id, project_id in ((shared["id"], other), (shared["id"], None), (str(uuid4()), project)):
            with pytest.raises(Problem, match="reference_not_found"):
                await service.check_usable(session, caller, UUID(credential_id), project_id)
        with pytest.raises(Problem, match="reference_not_found"):
            await service.check_usable(
                session, caller_for(ada, "member", {project: "member"}), UUID(own["id"]), project
            )
    assert (await client.patch(path, json={"name": "x"}, headers=bob.headers)).status_code == 200


async def test_a_credential_in_use_stays(client: httpx.AsyncClient, people: People, app_context: AppContext) -> None:
    project = await people.project("p")
    ada, admin = await people.add("member"), await people.add("admin")
    made = (await make(client, ada)).json()
    cluster, model = rows.cluster(), rows.model()
    endpoint = rows.endpoint(project, model.id, cluster.id, name="chat", credential_id=UUID(made["id"]))
    await rows.insert(app_context.database, cluster, model, endpoint)
    refused = await client.delete(f"/credentials/{made['id']}", headers=ada.headers)
    assert (refused.status_code, refused.json()["code"], "chat" in refused.json()["detail"]) == (409, "in_use", True)
    assert (await client.delete(f"/users/{ada.id}", headers=admin.headers)).json()["code"] == "in_use"
    async with app_context.database.transaction() as session:
        await session.execute(text("UPDATE platform.endpoint SET state = 'failed'"))
    assert (await client.delete(f"/credentials/{made['id']}", headers=ada.headers)).status_code == 204
    async with app_context.database.statement() as connection:
        assert (await connection.execute(text("SELECT credential_id FROM platform.endpoint"))).scalar_one() is None

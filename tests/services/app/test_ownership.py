"""Ids of others: in bodies, at the trigger, in the job, and in lists. What may not be named looks like what is not there."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from services.app.context import AppContext
from services.app.internal import AppAccess
from services.gateway.table import RouteTable
from shared.jobs.outcomes import Permanent
from tests.services.app.authorization import CONFIG, Things, make_things
from tests.services.app.conftest import People, Person

LOCAL, CLOUD, DEPLOY = "/models/local-model-workflow", "/models/cloud-model-workflow", "/models/deploy-workflow"
SCAN, ADD = "/models/security-scan", "/endpoints/add-worker"
ICON = "icons/providers/openai.png"
IMPORT = {"modality": "llm", "provider_type": "hugging_face", "uri": "people/model"}


class World:
    """A member of a project with things in it, and ways to change what they may."""

    def __init__(self, client: httpx.AsyncClient, context: AppContext, people: People, things: Things) -> None:
        self.client, self.context, self.people, self.things = client, context, people, things

    async def member(self, role: str = "member", **values: Any) -> Person:
        return await self.people.add("member", projects={self.things.project: role}, **values)

    async def step(self, person: Person, path: str, body: dict[str, Any], draft: str | None = None) -> httpx.Response:
        begins = {"workflow_total_steps": 7} if draft is None else {"workflow_id": draft}
        return await self.client.post(path, json={"step_number": 1, **begins, **body}, headers=person.headers)

    async def run(self, statement: str, **values: Any) -> None:
        async with self.context.database.transaction() as session:
            await session.execute(text(statement), values)

    async def forget(self, *, person: Person) -> None:
        """They leave the project; the caller's memory of a few seconds is not waited for."""
        await self.run("DELETE FROM platform.member WHERE user_id = :user", user=person.id)

    def __getitem__(self, name: str) -> str:
        return self.things.names[name]


@pytest.fixture
async def world(client: httpx.AsyncClient, app_context: AppContext, people: People, routes: RouteTable) -> World:
    return World(client, app_context, people, await make_things(app_context, people, routes))


@pytest.fixture(autouse=True)
def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request looks its caller up, as it does seconds after a change."""
    monkeypatch.setattr("services.app.identity.authenticate.REMEMBER_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("path", "field", "name"),
    [
        (CLOUD, "project_id", "project"), (LOCAL, "project_id", "project"), (LOCAL, "proprietary_credential_id", "shared"),
        (LOCAL, "proprietary_credential_id", "personal"), (DEPLOY, "project_id", "project"), (DEPLOY, "model_id", "model"),
        (DEPLOY, "credential_id", "shared"), (DEPLOY, "credential_id", "personal"), (SCAN, "model_id", "model"),
        (ADD, "endpoint_id", "endpoint"),
    ],
)  # fmt: skip
async def test_ids_of_others_are_unknown_ids(world: World, path: str, field: str, name: str) -> None:
    other = await world.people.add("member", projects={await world.people.project("other"): "member"})
    bound = await world.people.key_for(other.id, only_project=await world.people.project("third"))
    for person in (other, bound):
        answers = []
        for value in (world[name], str(uuid4())):
            answer = await world.step(
                person, path, {field: value, "template_id": str(uuid4())} if path == DEPLOY else {field: value}
            )
            answers.append(
                (answer.status_code, answer.json()["code"], answer.json()["errors"], answer.json()["detail"])
            )
        assert answers[0] == answers[1]
        assert answers[0][:2] == (422, "reference_not_found")


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        (CLOUD, "provider_id", "shared"), (CLOUD, "cloud_model_id", "model"), (DEPLOY, "template_id", "project"),
        (DEPLOY, "cluster_id", "endpoint"), (DEPLOY, "model_id", "cluster"), (SCAN, "model_id", "draft"),
    ],
)  # fmt: skip
async def test_an_id_of_another_kind_is_unknown(world: World, path: str, kind: str, name: str) -> None:
    answer = await world.step(await world.member(), path, {kind: world[name]})
    assert (answer.status_code, answer.json()["code"]) == (422, "reference_not_found")


TRIGGERS: list[tuple[str, dict[str, Any]]] = [
    (CLOUD, {"provider_type": "cloud_model", "provider_id": "{provider}", "uri": "openai/gpt", "modality": "llm", "name": "n",
             "project_id": "{project}"}),
    (LOCAL, {**IMPORT, "name": "n", "project_id": "{project}"}),
    (LOCAL, {**IMPORT, "name": "n", "project_id": "{project}", "proprietary_credential_id": "{shared}"}),
    (DEPLOY, {"project_id": "{project}", "model_id": "{model}", "endpoint_name": "n", "deploy_config": CONFIG,
              "cluster_id": "{cluster}"}),
    (SCAN, {"model_id": "{model}"}),
    (ADD, {"endpoint_id": "{endpoint}", "additional_concurrency": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields"), TRIGGERS)
@pytest.mark.parametrize("change", ["leaves", "only reads", "is a viewer"])
async def test_who_leaves_between_step_and_trigger_starts_nothing(
    world: World, path: str, fields: dict[str, Any], change: str
) -> None:
    provider = uuid4()
    await world.run(
        "INSERT INTO platform.provider (id, key, type, name) VALUES (:id, 'k', 'cloud_model', 'n')", id=provider
    )
    names = {**world.things.names, "provider": str(provider)}
    body = {key: value.format_map(names) if isinstance(value, str) else value for key, value in fields.items()}
    person = await world.member()
    begun = await world.step(person, path, body)
    assert begun.status_code == 200, begun.text
    draft = begun.json()["workflow_id"]
    before = await _jobs(world)
    if change == "leaves":
        await world.forget(person=person)
    elif change == "only reads":
        await world.run("UPDATE platform.member SET role = 'viewer' WHERE user_id = :user", user=person.id)
    else:
        await world.run("""UPDATE platform."user" SET role = 'viewer' WHERE id = :user""", user=person.id)
    refused = await world.step(person, path, {"trigger_workflow": True}, draft)
    assert refused.status_code in (403, 409, 422), refused.text
    assert await _jobs(world) == before
    if change == "leaves":
        shown = refused.json()["workflow"]["workflow_steps"]
        assert all(shown.get(name) is None for name in ("project", "model", "endpoint", "credential"))
        assert not {"additional_workers", "concurrency_per_worker"} & shown.keys()


async def _jobs(world: World) -> int:
    async with world.context.database.statement() as connection:
        return int((await connection.execute(text("SELECT count(*) FROM jobs.job"))).scalar_one())


async def test_a_credential_serves_its_own_project_only(world: World) -> None:
    """Who may see a credential of one project does not spend it on another, or on what is everyone's."""
    second = await world.people.project("second")
    person = await world.people.add("member", projects={world.things.project: "viewer", second: "member"})
    for project in ({"project_id": str(second)}, {}):
        body = {**IMPORT, "name": "n", "proprietary_credential_id": world["shared"], **project}
        answer = await world.step(person, LOCAL, {**body, "trigger_workflow": True})
        assert (answer.status_code, answer.json()["code"]) == (422, "reference_not_found"), answer.text
        assert answer.json()["errors"][0]["param"] == "proprietary_credential_id"


async def test_a_bound_key_stays_in_its_project(world: World) -> None:
    """It makes nothing that is everyone's, and neither sees nor uses what is its user's own."""
    mine = await world.people.project("mine")
    person = await world.member()
    await world.run(
        "INSERT INTO platform.member (project_id, user_id, role) VALUES (:p, :u, 'member')", p=mine, u=person.id
    )
    own = uuid4()
    await world.run(
        "UPDATE platform.credential SET owner_id = :u WHERE id = :c", u=person.id, c=UUID(world["personal"])
    )
    bound = await world.people.key_for(person.id, only_project=mine)
    refused = await world.step(bound, LOCAL, {**IMPORT, "name": str(own), "trigger_workflow": True})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await world.client.get(f"/credentials/{world['personal']}", headers=person.headers)).status_code == 200
    assert (await world.client.get(f"/credentials/{world['personal']}", headers=bound.headers)).status_code == 404
    listed = (await world.client.get("/credentials", headers=bound.headers)).json()
    assert (listed["data"], listed["total"]) == ([], 0)
    scan = (await world.step(person, SCAN, {"model_id": world["model"]})).json()["workflow_id"]
    assert (await world.client.get(f"/workflows/{scan}", headers=person.headers)).status_code == 200
    assert (await world.client.get(f"/workflows/{scan}", headers=bound.headers)).status_code == 404
    assert (await world.client.get("/workflows", headers=bound.headers)).json()["total"] == 1  # the one it began itself


async def test_lists_tell_nothing_of_others(world: World) -> None:
    other = await world.people.add("member", projects={await world.people.project("other"): "member"})
    for path in ("/endpoints", "/jobs", "/workflows", "/credentials"):
        listed = (await world.client.get(path, headers=other.headers)).json()
        assert (listed["data"], listed["total"], listed["next_cursor"]) == ([], 0, None), path
        for query in ({"project_id": world["project"]}, {"search": "e"}, {"limit": "1"}):
            answer = await world.client.get(path, headers=other.headers, params=query)
            if path == "/credentials" and "project_id" in query:  # a project that one may not see is as if it were not
                assert (answer.status_code, answer.json()["code"]) == (422, "reference_not_found")
            else:
                assert answer.json()["total"] == 0, path
    models = (await world.client.get("/models", headers=other.headers)).json()
    assert [one["id"] for one in models["data"]] == [world["everyones"]]


async def test_who_left_sees_neither_the_job_nor_its_workflow(world: World) -> None:
    """Who started a job has no more rights in it than its project gives."""
    person = await world.member()
    workflow = (await world.step(person, SCAN, {"model_id": world["model"], "trigger_workflow": True})).json()
    paths = [f"/jobs/{workflow['job']['id']}", f"/workflows/{workflow['workflow_id']}"]
    for path in paths:
        assert (await world.client.get(path, headers=person.headers)).status_code == 200
    await world.run("UPDATE platform.member SET role = 'viewer' WHERE user_id = :user", user=person.id)
    for path in paths:
        assert (await world.client.get(path, headers=person.headers)).status_code == 200
        for verb in ("cancel", "retry"):
            assert (await world.client.post(f"{path}/{verb}", headers=person.headers)).status_code == 403
    await world.forget(person=person)
    for path in paths:
        for answer in (
            await world.client.get(path, headers=person.headers),
            await world.client.get(f"{path}/events", headers=person.headers),
            await world.client.post(f"{path}/cancel", headers=person.headers),
        ):  # fmt: skip
            assert answer.status_code == 404
    assert (await world.client.get("/jobs", headers=person.headers)).json()["total"] == 0
    assert (await world.client.get("/workflows", headers=person.headers)).json()["total"] == 0


# ---- in the job


async def _importing(world: World, person: Person, credential: str, **fields: Any) -> UUID:
    """A running import that names the credential."""
    body = {**IMPORT, "name": uuid4().hex, "proprietary_credential_id": credential, "trigger_workflow": True, **fields}
    job_id = UUID((await world.step(person, LOCAL, body)).json()["job"]["id"])
    await world.run("UPDATE jobs.job SET state = 'running' WHERE id = :id", id=job_id)
    return job_id


async def _refusal(access: AppAccess, job_id: UUID, credential: str) -> str | None:
    try:
        await access.credential(job_id, UUID(credential))
    except Permanent as refused:
        return refused.code
    return None


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM platform.member WHERE user_id = :user", """UPDATE platform."user" SET role = 'viewer' WHERE id = :user""",
        """UPDATE platform."user" SET disabled_at = now() WHERE id = :user""",
        "UPDATE platform.member SET role = 'viewer' WHERE user_id = :user",
        "UPDATE platform.credential SET project_id = NULL WHERE project_id IS NOT NULL AND owner_id <> :user",
        "DELETE FROM platform.credential WHERE owner_id <> :user",
    ],
)  # fmt: skip
async def test_a_job_gets_no_secret_for_who_has_lost_it(world: World, change: str) -> None:
    access, person = AppAccess(world.context), await world.member()
    job_id = await _importing(world, person, world["shared"], project_id=world["project"])
    assert await _refusal(access, job_id, world["shared"]) is None
    await world.run(change, user=person.id)
    assert await _refusal(access, job_id, world["shared"]) == "credential_gone"


async def test_a_job_asks_only_for_what_its_fields_name(world: World) -> None:
    """An id in a text that its user chose names nothing, and a job that has ended asks for nothing."""
    access, person = AppAccess(world.context), await world.member()
    uri = f"people/{world['personal']}"
    job_id = await _importing(world, person, world["shared"], project_id=world["project"], uri=uri)
    assert await _refusal(access, job_id, world["personal"]) == "not_this_jobs_business"
    for call in (
        access.kubeconfig(job_id, UUID(world["cluster"])), access.worker_key(job_id, UUID(world["endpoint"])),
        access.check_gate(job_id, UUID(world["model"]), world.things.project, None),
        access.admit_bytes(job_id, world.things.bare, 1), access.admit_bytes(uuid4(), None, 1),
        access.claim_files(job_id, UUID(world["model"]), [], None),
    ):  # fmt: skip
        with pytest.raises(Permanent) as refused:
            await call
        assert refused.value.code == "not_this_jobs_business"
    await access.admit_bytes(job_id, world.things.project, 1)
    await world.run("UPDATE jobs.job SET state = 'succeeded' WHERE id = :id", id=job_id)
    assert await _refusal(access, job_id, world["shared"]) == "not_this_jobs_business"

"""Projects: made, changed, deleted when empty; members; policy and quotas as they hold."""

import asyncio
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text

from services.app.context import AppContext
from services.app.projects import policies, quotas
from services.app.projects.schemas import Policy, Quotas
from shared.errors import Problem
from tests.services.app import rows
from tests.services.app.conftest import People


async def test_whoever_makes_a_project_manages_it_at_once(client: httpx.AsyncClient, people: People) -> None:
    member = await people.add("member")
    assert (await client.get("/projects", headers=member.headers)).json()["total"] == 0
    made = await client.post("/projects", json={"name": "p", "description": "d"}, headers=member.headers)
    project = made.json()
    path = f"/projects/{project['id']}"
    assert (made.status_code, made.headers["location"], project["role"]) == (201, path, "manager")
    assert (project["policy"], project["quotas"]) == (Policy().model_dump(), Quotas().model_dump())
    changed = await client.patch(path, json={"description": None, "name": "q"}, headers=member.headers)
    assert (changed.json()["name"], changed.json()["description"], changed.json()["revision"]) == ("q", None, 2)
    assert (await client.get("/projects?search=Q", headers=member.headers)).json()["data"] == [changed.json()]
    assert (await client.delete(path, headers=member.headers)).status_code == 204
    assert (await client.get(path, headers=member.headers)).status_code == 404


async def test_names_are_unique(client: httpx.AsyncClient, people: People) -> None:
    admin = await people.add("admin")
    answers = await asyncio.gather(
        *(client.post("/projects", json={"name": "p"}, headers=admin.headers) for _ in range(5))
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    other = (await client.post("/projects", json={"name": "q"}, headers=admin.headers)).json()
    taken = await client.patch(f"/projects/{other['id']}", json={"name": "p"}, headers=admin.headers)
    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")


@pytest.mark.parametrize(
    "body",
    [{}, {"name": ""}, {"name": None}, {"name": "a\u0007"}, {"name": "a" * 101}, {"name": "p", "icon": "icons/none.png"},
     {"name": "p", "policy": {"block_severity": "none"}}, {"name": "p", "quotas": {"models": -1}},
     {"name": "p", "quotas": {"elephants": 1}}, {"name": "p", "policy": {"require_scan": "no"}}],
)  # fmt: skip
async def test_bad_bodies(client: httpx.AsyncClient, people: People, body: dict[str, object]) -> None:
    admin = await people.add("admin")
    assert (await client.post("/projects", json=body, headers=admin.headers)).status_code == 422


async def test_policy_and_quotas_are_an_admins(
    client: httpx.AsyncClient, people: People, app_context: AppContext
) -> None:
    project = await people.project("p")
    manager, admin = await people.add("member", projects={project: "manager"}), await people.add("admin")
    body = {"policy": {"require_scan": False}, "quotas": {"models": 3}}
    for name, value in body.items():
        answer = await client.patch(f"/projects/{project}", json={name: value}, headers=manager.headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    changed = (await client.patch(f"/projects/{project}", json=body, headers=admin.headers)).json()
    assert changed["policy"] == {"require_scan": False, "block_severity": "high"}
    assert changed["quotas"] == {**Quotas().model_dump(), "models": 3}
    async with app_context.database.transaction() as session:
        stored = (await session.execute(text("SELECT policy, quotas FROM platform.project"))).one()
        assert tuple(stored) == ({"require_scan": False}, {"models": 3})
        assert await policies.of(session, project) == Policy(require_scan=False)
        assert await policies.of(session, None) == await policies.of(session, uuid4()) == Policy()
    cleared = await client.patch(f"/projects/{project}", json={"policy": None}, headers=admin.headers)
    assert cleared.json()["policy"] == Policy().model_dump()
    assert (
        await client.post("/projects", json={"name": "q", "policy": None}, headers=manager.headers)
    ).status_code == 201


async def test_what_another_version_stored_is_left_out(
    client: httpx.AsyncClient, people: People, app_context: AppContext
) -> None:
    project, admin = await people.project("p"), await people.add("admin")
    async with app_context.database.transaction() as session:
        await session.execute(text("""UPDATE platform.project SET quotas = '{"tokens": 5, "models": 1}'"""))
    shown = (await client.get(f"/projects/{project}", headers=admin.headers)).json()
    assert shown["quotas"] == {**Quotas().model_dump(), "models": 1}


async def test_a_project_in_use_stays(client: httpx.AsyncClient, people: People, app_context: AppContext) -> None:
    project, other, admin = await people.project("p"), await people.project("q"), await people.add("admin")
    cluster, model = rows.cluster(), rows.model(project_id=project)
    endpoint = rows.endpoint(project, model.id, cluster.id, state="failed")
    job = rows.job(project)
    await rows.insert(app_context.database, cluster, model, endpoint, job)

    async def delete() -> httpx.Response:
        return await client.delete(f"/projects/{project}", headers=admin.headers)

    async def set_state(table: str, state: str) -> None:
        async with app_context.database.transaction() as session:
            await session.execute(text(f"UPDATE {table} SET state = :state"), {"state": state})

    assert (await delete()).json()["detail"] == "The project still has 1 models, 1 endpoints, 1 jobs in flight."
    await set_state("platform.endpoint", "deleted")
    await set_state("platform.model", "deleted")
    assert (await delete()).json()["code"] == "in_use"
    await set_state("jobs.job", "succeeded")
    # An endpoint of another project has served the model: that history stays.
    await rows.insert(app_context.database, rows.endpoint(other, model.id, cluster.id, state="deleted"))
    assert (await delete()).status_code == 204
    async with app_context.database.statement() as connection:
        left = (await connection.execute(text("SELECT project_id FROM platform.endpoint"))).scalars().all()
        assert left == [other]
        assert (await connection.execute(text("SELECT state, project_id FROM platform.model"))).all() == [
            ("deleted", None)
        ]


async def test_members(client: httpx.AsyncClient, people: People) -> None:
    project = await people.project("p")
    manager = await people.add("member", name="boss", projects={project: "manager"})
    ada = await people.add("member", name="ada")
    path = f"/projects/{project}/members"
    assert (await client.get(f"/projects/{project}", headers=ada.headers)).status_code == 404
    put = await client.put(f"{path}/{ada.id}", json={"role": "viewer"}, headers=manager.headers)
    assert (put.status_code, put.json()["user"]["name"], put.json()["role"]) == (201, "ada", "viewer")
    assert (await client.get(f"/projects/{project}", headers=ada.headers)).json()["role"] == "viewer"
    again = await client.put(f"{path}/{ada.id}", json={"role": "member"}, headers=manager.headers)
    assert (again.status_code, again.json()["role"]) == (200, "member")
    listed = (await client.get(f"{path}?order_by=name", headers=ada.headers)).json()
    assert [(one["user"]["name"], one["role"]) for one in listed["data"]] == [("ada", "member"), ("boss", "manager")]
    assert (await client.get(f"{path}/{ada.id}", headers=manager.headers)).json() == again.json()
    assert (await client.delete(f"{path}/{manager.id}", headers=ada.headers)).status_code == 403
    assert (await client.delete(f"{path}/{ada.id}", headers=ada.headers)).status_code == 204
    assert (await client.get(f"/projects/{project}", headers=ada.headers)).status_code == 404
    assert (await client.delete(f"{path}/{ada.id}", headers=manager.headers)).status_code == 404
    assert (await client.put(f"{path}/{uuid4()}", json={}, headers=manager.headers)).status_code == 404
    assert (await client.put(f"{path}/{ada.id}", json={"role": "admin"}, headers=manager.headers)).status_code == 422


async def test_a_viewer_who_manages_still_changes_nothing(client: httpx.AsyncClient, people: People) -> None:
    project = await people.project("p")
    viewer = await people.add("viewer", projects={project: "manager"})
    assert (await client.patch(f"/projects/{project}", json={"name": "x"}, headers=viewer.headers)).status_code == 403


# ---- quotas


async def test_a_quota_counts_what_lives(people: People, app_context: AppContext) -> None:
    project = await people.project("p")
    cluster, model = rows.cluster(), rows.model(project_id=project, size=1000)
    await rows.insert(
        app_context.database, cluster, model, rows.model(project_id=project, state="deleted", size=5000),
        rows.endpoint(project, model.id, cluster.id, desired={"replicas": 3}),
        rows.endpoint(project, model.id, cluster.id, desired={}),
        rows.endpoint(project, model.id, cluster.id, state="failed", desired={"replicas": 50}),
        rows.job(project), rows.job(project, "waiting"), rows.job(project, "failed"),
    )  # fmt: skip
    limits = {"models": 2, "endpoints": 3, "workers": 5, "bytes": 1500, "jobs_in_flight": 3}
    async with app_context.database.transaction() as session:
        statement = text("UPDATE platform.project SET quotas = jsonb_build_object('models', 2, 'endpoints', 3, 'workers', 5,"
                         " 'bytes', 1500, 'jobs_in_flight', 3)")  # fmt: skip
        await session.execute(statement)
    async with app_context.database.transaction() as session:
        await quotas.check(session, project, models=1, endpoints=1, workers=2, bytes=500, jobs_in_flight=1)
        with pytest.raises(Problem) as refused:
            await quotas.check(session, project, models=2, endpoints=2, workers=3, bytes=501, jobs_in_flight=2)
    used = {"models": 1, "endpoints": 2, "workers": 3, "bytes": 1000, "jobs_in_flight": 2}
    adding = {"models": 2, "endpoints": 2, "workers": 3, "bytes": 501, "jobs_in_flight": 2}
    assert refused.value.code == "quota_exceeded"
    assert refused.value.members["quotas"] == [
        {"quota": name, "limit": limits[name], "used": used[name], "adding": adding[name]} for name in limits
    ]
    assert "The project may have 2 models; it has 1, and this adds 2." in refused.value.detail


async def test_quotas_of_no_project_and_of_none_that_is_there(app_context: AppContext) -> None:
    async with app_context.database.transaction() as session:
        await quotas.check(session, None, models=10**9)
        with pytest.raises(Problem, match="reference_not_found"):
            await quotas.check(session, uuid4(), models=1)
        with pytest.raises(ValueError, match="elephants"):
            await quotas.check(session, None, elephants=1)


async def test_only_one_takes_the_last_place(people: People, app_context: AppContext) -> None:
    project = await people.project("p")
    async with app_context.database.transaction() as session:
        await session.execute(text("""UPDATE platform.project SET quotas = '{"models": 2}'"""))

    async def add() -> bool:
        try:
            async with app_context.database.transaction() as session:
                await quotas.check(session, project, models=1)
                session.add(rows.model(project_id=project))
        except Problem:
            return False
        return True

    assert sum(await asyncio.gather(*(add() for _ in range(8)))) == 2

"""The audit log: what it tells, to whom, and its filters."""

from datetime import timedelta
from uuid import UUID

import httpx
import pytest

from services.app.audit import service
from services.app.context import AppContext
from shared.clock import iso, now
from tests.services.app.conftest import People, caller_for


async def test_an_entry_tells_who_did_what(client: httpx.AsyncClient, people: People) -> None:
    admin = await people.add("admin", name="ada")
    headers = {**admin.headers, "X-Request-Id": "request-0815"}
    project = (await client.post("/projects", json={"name": "p"}, headers=headers)).json()
    [entry] = (await client.get("/audit", headers=admin.headers)).json()["data"]
    assert (entry["object"], entry["actor"], entry["actor_id"], entry["key_id"]) == (
        "audit_entry", "ada", str(admin.id), str(admin.key_id),
    )  # fmt: skip
    assert (entry["action"], entry["resource_type"], entry["resource_id"]) == (
        "project.create",
        "project",
        project["id"],
    )
    assert (entry["project_id"], entry["request_id"], entry["details"]) == (
        project["id"],
        "request-0815",
        {"name": "p"},
    )
    assert entry["address"] == "127.0.0.1"


async def test_refused_changes_leave_no_entry(client: httpx.AsyncClient, people: People) -> None:
    admin = await people.add("admin")
    for _ in range(2):
        await client.post("/projects", json={"name": "p"}, headers=admin.headers)
    assert (await client.get("/audit", headers=admin.headers)).json()["total"] == 1


@pytest.fixture
async def filled(people: People, app_context: AppContext) -> dict[str, str]:
    """Three entries of two people in two projects; the ids by which they can be told apart."""
    first, second = await people.project("first"), await people.project("second")
    ada, bob = await people.add("member", name="ada"), await people.add("member", name="bob")
    async with app_context.database.transaction() as session:
        await service.record(session, caller_for(ada, "member"), "model.change", "model", "m1", project_id=first)
        await service.record(session, caller_for(bob, "member"), "model.delete", "model", "m1", project_id=second)
        await service.record(session, None, "endpoint.delete", "endpoint", "e1")
    return {"first": str(first), "second": str(second), "ada": str(ada.id)}


async def test_filters(client: httpx.AsyncClient, people: People, filled: dict[str, str]) -> None:
    admin = await people.add("admin")
    soon, before = iso(now() + timedelta(minutes=1)), iso(now() - timedelta(minutes=1))
    everything = ["endpoint.delete", "model.delete", "model.change"]
    expected = {
        "": everything, "order_by=created_at": everything[::-1], f"since={before}&until={soon}": everything, f"since={soon}": [],
        f"until={before}": [], f"actor_id={filled['ada']}": ["model.change"], "action=model.delete": ["model.delete"],
        "resource_type=model": ["model.delete", "model.change"], "resource_id=e1": ["endpoint.delete"],
        f"project_id={filled['second']}": ["model.delete"], "search=MODEL": ["model.delete", "model.change"],
    }  # fmt: skip
    for query, actions in expected.items():
        answer = await client.get(f"/audit?{query}", headers=admin.headers)
        assert [entry["action"] for entry in answer.json()["data"]] == actions, query
    for extreme in ("0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00"):
        assert (await client.get(f"/audit?since={extreme}&until={extreme}", headers=admin.headers)).json()["total"] == 0
    page = (await client.get("/audit?limit=2", headers=admin.headers)).json()
    rest = (await client.get(f"/audit?limit=2&cursor={page['next_cursor']}", headers=admin.headers)).json()
    assert [entry["action"] for entry in page["data"] + rest["data"]] == everything
    for query in ("since=yesterday", "since=2026-01-01T00:00:00", "action=%00", "actor_id=ada", "order_by=actor"):
        assert (await client.get(f"/audit?{query}", headers=admin.headers)).status_code == 400, query


async def test_managers_read_what_was_done_in_their_projects(
    client: httpx.AsyncClient, people: People, filled: dict[str, str], app_context: AppContext
) -> None:
    first, second = UUID(filled["first"]), UUID(filled["second"])
    manager = await people.add("member", projects={first: "manager", second: "member"})
    mine = (await client.get("/audit", headers=manager.headers)).json()
    assert [entry["action"] for entry in mine["data"]] == ["model.change"]
    assert (await client.get(f"/audit?project_id={first}", headers=manager.headers)).json()["total"] == 1
    assert (await client.get(f"/audit?project_id={second}", headers=manager.headers)).status_code == 403
    outsider = await people.add("member", projects={await people.project("third"): "manager"})
    assert (await client.get(f"/audit?project_id={first}", headers=outsider.headers)).status_code == 404
    admin = await people.add("admin")
    bound = await people.key_for(admin.id, only_project=second)
    assert [entry["action"] for entry in (await client.get("/audit", headers=bound.headers)).json()["data"]] == [
        "model.delete"
    ]

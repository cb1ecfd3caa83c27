"""Workflow servers: registered, seen, forgotten."""

from typing import Any
from uuid import uuid4

import pytest

from services.app.maintenance import Maintenance
from tests.services.app.workflow_servers.conftest import Place, told

SILENT = "UPDATE platform.workflow_server SET seen_at = now() - interval '31 seconds' WHERE id = :id"


async def test_a_server_registers_once(place: Place) -> None:
    served = {"name": "greet", "start_schema": {"type": "object"}, "events": ["Approval"]}
    again = await place.register(workflows=[served], url="http://10.0.0.1:8080", version="1.2")
    shown = await place.get(f"/workflow-servers/{again['id']}")
    assert (await place.get("/workflow-servers"))["total"] == 1
    assert (shown["name"], shown["state"], shown["durable"], shown["workflows"]) == (
        "greeter",
        "online",
        True,
        ["greet"],
    )
    assert (shown["url"], shown["version"], shown["revision"]) == ("http://10.0.0.1:8080", "1.2", 2)
    [workflow] = (await place.get(f"/workflow-servers/{again['id']}/workflows"))["data"]
    assert served.items() <= workflow.items()
    other = await place.register(instance="elsewhere")
    assert other["id"] != again["id"]


async def test_a_server_is_online_while_it_reports(place: Place) -> None:
    path = f"/workflow-servers/{place.server['id']}"
    await place.execute(SILENT, id=place.server["id"])
    shown = await place.get(path)
    assert (shown["state"], shown["state_since"]) == ("offline", shown["seen_at"])
    assert (await place.get("/workflow-servers", state="online"))["total"] == 0
    assert (await place.get("/workflow-servers", state="offline"))["total"] == 1
    await place.report()
    back = await place.get(path)
    assert back["state"] == "online"
    assert back["state_since"] > shown["state_since"]
    await place.report(stopping=True)
    assert (await place.get(path))["state"] == "stopped"
    await place.register()
    assert (await place.get(path))["state"] == "online"


async def test_what_was_in_memory_ends_with_its_process(place: Place) -> None:
    await place.register(process="one")
    await place.report(told("a"), told("b", "completed", 1), process="one", position="7")
    again = await place.register(process="two")
    assert again["position"] is None
    assert await place.runs() == {"a": "unknown", "b": "completed"}
    late = await place.send(process="one", changes=[told("a", "completed", 2)])
    assert (late.status_code, late.json()["code"]) == (409, "conflict")
    await place.report(told("c"), process="two")
    await place.report(process="two", stopping=True)
    assert (await place.runs())["c"] == "unknown"


async def test_a_forgotten_server_registers_anew(place: Place) -> None:
    await place.report(told("a"), position="7")
    path = f"/workflow-servers/{place.server['id']}"
    assert (await place.client.delete(path, headers=place.member.headers)).status_code == 204
    assert (await place.send()).status_code == 404
    assert await place.runs() == {}
    assert (await place.register())["position"] is None


async def test_only_who_registered_it_reports(place: Place) -> None:
    colleague = await place.people.add("member", projects={place.project_id: "member"})
    refused = await place.send(colleague, gone=["a"])
    assert (refused.status_code, refused.json()["code"]) == (403, "not_owner")
    await place.register(colleague)
    assert (await place.send(colleague)).status_code == 200
    assert (await place.send(place.member)).status_code == 403


async def test_servers_of_a_project_are_bounded(place: Place) -> None:
    place.context.settings.workflow_servers_per_project = 3
    first = await place.register(instance="m1", process="p1")
    await place.register(instance="m2", process="p2")
    body = {"name": "greeter", "instance": "m3", "project_id": str(place.project_id)}
    full = await place.client.post("/workflow-servers", json=body, headers=place.member.headers)
    assert (full.status_code, full.json()["code"]) == (409, "quota_exceeded")
    await place.execute(SILENT, id=first["id"])
    await place.register(instance="m3")
    assert {one["instance"] for one in (await place.get("/workflow-servers"))["data"]} == {"here", "m2", "m3"}


async def test_a_key_of_one_project_needs_no_name_of_it(place: Place) -> None:
    bound = await place.people.key_for(place.member.id, only_project=place.project_id)
    assert (await place.register(bound, project_id=None))["project_id"] == str(place.project_id)


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""}, {"instance": "a\u0007"}, {"url": "ftp://x"}, {"url": "javascript:x"}, {"workflows": [{"name": ""}]},
        {"workflows": [{"name": "x"}] * 201}, {"workflows": [{"name": "x", "start_schema": []}]}, {"position": "1"},
    ],
)  # fmt: skip
async def test_registrations_that_are_refused(place: Place, body: dict[str, Any]) -> None:
    whole = {"name": "n", "instance": "i", "project_id": str(place.project_id), **body}
    assert (await place.client.post("/workflow-servers", json=whole, headers=place.member.headers)).status_code == 422


async def test_old_servers_and_runs_are_forgotten(place: Place) -> None:
    await place.report(told("old", "completed"), told("waits"), told("new", "failed"))
    await place.execute(
        "UPDATE platform.workflow_run SET created_at = now() - interval '91 days' WHERE run_id <> 'new'"
    )

    async def hold(_name: str) -> int:
        return 1

    maintenance = Maintenance(place.context, hold)
    await maintenance.round()
    assert await place.runs() == {"waits": "running", "new": "failed"}
    await place.execute("UPDATE platform.workflow_server SET seen_at = now() - interval '91 days'")
    await maintenance.round()
    assert (await place.get("/workflow-servers"))["total"] == 0
    assert await place.runs() == {}


async def test_a_project_is_deleted_with_its_servers(place: Place) -> None:
    await place.report(told("a"))
    admin = await place.people.add("admin")
    assert (await place.client.delete(f"/projects/{place.project_id}", headers=admin.headers)).status_code == 204
    assert await place.execute("SELECT count(*) FROM platform.workflow_run") == 0
    assert (await place.send()).status_code == 404


async def test_what_is_done_is_in_the_log(place: Place) -> None:
    await place.report(
        told("a", started_key_id=str(place.member.key_id)), told("b", started_key_id=str(uuid4())), told("c")
    )
    await place.report(told("a", "completed", 3, started_key_id=str(place.member.key_id)))
    await place.cancel("b")
    await place.client.delete(f"/workflow-servers/{place.server['id']}", headers=place.member.headers)
    admin = await place.people.add("admin")
    log = await place.get("/audit", admin, project_id=str(place.project_id))
    assert [one["action"] for one in reversed(log["data"])] == [
        "workflow_server.register", "workflow_run.start", "workflow_run.cancel", "workflow_server.forget",
    ]  # fmt: skip
    start = log["data"][2]["details"]
    behalf = {"on_behalf_of": str(place.member.id), "on_behalf_key_id": str(place.member.key_id)}
    assert start == {"workflow": "greet", **behalf}

"""What all lists have in common over HTTP: pages, orders, and refusals of what they do not know."""

import re
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import httpx
import pytest

from services.app.context import AppContext
from services.app.wizards.descriptor import describe
from services.app.wizards.registry import WIZARDS
from services.gateway.table import RouteTable
from tests.services.app.authorization import Things, make_things
from tests.services.app.conftest import People, Person
from tests.services.app.test_authorization import filled

SHORT = {
    "/icons": "name",
    "/wizards": "title",
    "/credential-types": "name",
    "/flow/task-types": "name",
    "/endpoints/{endpoint}/workers": "id",
    "/workflow-servers/{server}/workflows": "id",
}
ENUMS = {
    "/jobs": ("state", "kind"), "/workflows": ("type", "status"), "/clusters": ("state", "kind"), "/endpoints": ("state",),
    "/models": ("state", "provider_type", "modality", "scan_status", "source"), "/models/providers": ("type",),
    "/models/catalog": ("modality",), "/users": ("role",), "/templates": ("template_type",), "/icons": ("category",),
    "/credentials": ("type",), "/flow/executions": ("status", "dialect"),
    "/webhooks/deliveries": ("state",), "/workflow-servers": ("state",), "/workflow-runs": ("status",),
}  # fmt: skip
LISTS = [
    *ENUMS, *SHORT, "/audit", "/keys", "/projects", "/projects/{project}/members", "/models/{model}/scans",
    "/models/{model}/scan-overrides", "/clusters/clusters", "/flow/workflows", "/flow/workflows/{flow}/versions",
    "/flow/workflows/{flow}/executions", "/flow/workflows/{automatic}/schedules", "/flow/workflows/{automatic}/triggers",
    "/webhooks", "/webhooks/{webhook}/deliveries", "/flow/files",
]  # fmt: skip


@pytest.fixture
async def admin(people: People) -> Person:
    return await people.add("admin")


@pytest.fixture
async def things(app_context: AppContext, people: People, routes: RouteTable) -> Things:
    return await make_things(app_context, people, routes)


async def _page(client: httpx.AsyncClient, person: Person, path: str, **query: Any) -> Mapping[str, Any]:
    answer = await client.get(path, params=query, headers=person.headers)
    assert answer.status_code == 200, answer.text
    page: Mapping[str, Any] = answer.json()
    assert list(page) == ["object", "data", "total", "next_cursor"]
    return page


@pytest.mark.parametrize("path", SHORT)
async def test_short_lists_come_in_pages(client: httpx.AsyncClient, admin: Person, things: Things, path: str) -> None:
    path = filled(path, things.names)
    whole = (await _page(client, admin, path, limit=200))["data"]
    assert len(whole) > 1
    step, seen, cursor = max(1, len(whole) // 3), [], None
    while True:
        page = await _page(client, admin, path, limit=step, **({"cursor": cursor} if cursor else {}))
        assert len(page["data"]) <= step
        assert page["total"] == len(whole)
        seen += page["data"]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == whole


@pytest.mark.parametrize(("path", "name"), [pair for pair in SHORT.items() if pair[1] != "id"])
async def test_short_lists_are_sorted_and_searched(
    client: httpx.AsyncClient, admin: Person, path: str, name: str
) -> None:
    up = (await _page(client, admin, path, limit=200, order_by=name))["data"]
    down = (await _page(client, admin, path, limit=200, order_by=f"-{name}"))["data"]
    assert [one[name] for one in up] == sorted(one[name] for one in up)
    assert down == up[::-1]
    found = (await _page(client, admin, path, limit=200, search=up[0][name].upper()))["data"]
    assert up[0] in found
    assert (await _page(client, admin, path, search="no such thing"))["data"] == []
    cursor = (await _page(client, admin, path, limit=1))["next_cursor"]
    foreign = await client.get(path, params={"cursor": cursor, "order_by": name}, headers=admin.headers)
    assert (foreign.status_code, foreign.json()["code"]) == (400, "invalid_cursor")


@pytest.mark.parametrize("path", LISTS)
async def test_what_a_list_does_not_know(client: httpx.AsyncClient, admin: Person, things: Things, path: str) -> None:
    path = filled(path, things.names)
    for query, param, code in (
        ("colour=red", "colour", "unknown_parameter"), ("limit=1&limit=2", "limit", "duplicate"),
        ("limit=0", "limit", "out_of_range"), ("limit=201", "limit", "out_of_range"),
        ("order_by=password", "order_by", "not_allowed"), ("a%20b=1", None, "unknown_parameter"),
    ):  # fmt: skip
        answer = await client.get(f"{path}?{query}", headers=admin.headers)
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["param"]) == (400, "invalid_query", param), query
        assert [fault["code"] for fault in problem["errors"]] == [code], query
        assert not problem["detail"].endswith("..")


@pytest.mark.parametrize("path", ENUMS)
async def test_values_that_a_filter_cannot_have(client: httpx.AsyncClient, admin: Person, path: str) -> None:
    for name in ENUMS[path]:
        answer = await client.get(path, params={name: "moon"}, headers=admin.headers)
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["param"]) == (400, "invalid_query", name), answer.text
        assert "must be" in problem["detail"]


async def test_the_options_of_wizards_name_parameters_that_lists_know(client: httpx.AsyncClient, admin: Person) -> None:
    hrefs = {
        option["href"]
        for wizard in WIZARDS.values()
        for step in describe(wizard)["steps"]
        for option in (step.get("options") or {}).values()
    }
    assert hrefs
    for href in hrefs:
        path, _, expression = href.partition("{?")
        if "{" in path:
            continue  # of a workflow
        path, _, fixed = path.partition("?")
        names = [name for name in re.split("[,}]", expression) if name]
        query = dict(pair.split("=") for pair in fixed.split("&") if pair)
        for name in names:
            query[name] = str(uuid4()) if name.endswith("_id") else ""
        answer = await client.get(path, params=query, headers=admin.headers)
        if answer.status_code >= 400:
            assert {fault["code"] for fault in answer.json()["errors"]}.isdisjoint({"unknown_parameter"}), href


@pytest.mark.parametrize("path", ["/keys", "/credentials"])
async def test_a_project_that_is_not_there(client: httpx.AsyncClient, people: People, admin: Person, path: str) -> None:
    foreign = await people.project(uuid4().hex)
    member = await people.add("member")
    body = {"name": "x", **({"type": "openai", "fields": {"api_key": "x"}} if path == "/credentials" else {})}
    for person, project_id in ((admin, uuid4()), (member, uuid4()), (member, foreign)):
        for answer in (
            await client.get(path, params={"project_id": str(project_id)}, headers=person.headers),
            await client.post(path, json={**body, "project_id": str(project_id)}, headers=person.headers),
        ):
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (422, "reference_not_found"), answer.text
            assert problem["errors"][0]["param"] == problem["param"] == "project_id"


async def test_a_slash_at_the_end_is_another_path(client: httpx.AsyncClient, admin: Person) -> None:
    for method in ("GET", "POST"):
        answer = await client.request(method, "/projects/", json={"name": "x"}, headers=admin.headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(answer.json()["errors"]) == 1


async def test_if_match(client: httpx.AsyncClient, admin: Person, things: Things) -> None:
    """A list of tags, any tag, a weak one, and nonsense; each refusal tells the present tag."""
    for template, body in (
        ("/clusters/{cluster}", {"icon": None}), ("/models/{model}", {"description": "x"}),
        ("/templates/{template}", {"description": "x"}), ("/projects/{project}", {"description": "x"}),
        ("/workflows/{draft}/cancel", None),
    ):  # fmt: skip
        path = filled(template, things.names)
        shown = path.removesuffix("/cancel")
        for tags in ('"98", "99"', "nonsense", '""', '"99'):
            now = (await client.get(shown, headers=admin.headers)).headers["etag"]
            headers = {**admin.headers, "If-Match": tags}
            method = "PATCH" if body else "POST"
            answer = await client.request(method, path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (412, "revision_mismatch"), (path, tags)
            assert answer.headers["etag"] == now
        for good in ('"98", {}', "W/{}", "*"):
            headers["If-Match"] = good.format(now)
            answer = await client.request(method, path, json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            now = (await client.get(shown, headers=admin.headers)).headers["etag"]
            if body is None:
                break  # a draft is cancelled once
    for path in ("/clusters/{empty}", "/endpoints/{endpoint}", "/models/{idle}"):
        answer = await client.delete(filled(path, things.names), headers={**admin.headers, "If-Match": '"99"'})
        assert answer.status_code == 412
        assert answer.headers["etag"].strip('"').isdigit()


async def test_who_logs_out_is_in_the_audit_log(client: httpx.AsyncClient, admin: Person) -> None:
    await client.post("/login", json={"key": admin.key})
    assert (await client.delete("/login", headers={"Origin": "http://test"})).status_code == 204
    entry = (await _page(client, admin, "/audit", action="login.end"))["data"][0]
    assert entry["actor_id"] == str(admin.id)
    assert entry["actor"].startswith("admin-")
    assert entry["key_id"] == str(admin.key_id)

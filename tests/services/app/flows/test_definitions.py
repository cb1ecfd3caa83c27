"""Flows: made from the seeds' own examples, versions, both ways of writing, projects, limits, refusals."""

import asyncio
import re
from typing import Any

import httpx
import pytest

from services.app.projects import repository as projects
from tests.services.app.flows.conftest import REFS, TASKS, Flows, Json, faults, parsed, template

WF = re.compile(r"wf-[a-z0-9]{8}")


@pytest.mark.parametrize("page", ["refs", "tasks"])
async def test_the_seeds_own_workflows_are_created(flows: Flows, page: str) -> None:
    body = {"refs": REFS, "tasks": TASKS}[page][0]
    answer = await flows.ask("POST", "/workflows", body=body)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert list(made) == ["workflow_id", "workflow_version"]
    assert WF.fullmatch(made["workflow_id"])
    assert made["workflow_version"] == 1
    assert answer.headers["location"] == f"/flow/workflows/{made['workflow_id']}"
    shown = await flows.get(f"/workflows/{made['workflow_id']}")
    assert shown["definition"] == parsed(body)
    assert (shown["dialect"], shown["project_id"]) == (page, str(flows.project))


async def test_each_dialect_is_answered_in_the_other_when_asked(flows: Flows) -> None:
    workflow = await flows.create(REFS[0])
    shown = (await flows.get(f"/workflows/{workflow}", dialect="tasks"))["definition"]
    assert shown["title"] == parsed(REFS[0])["name"]
    assert shown["tasks"][1] == {
        "name": "extract_text", "type": "Web.ExtractText",
        "inputs": {"html_content": "{{tasks.download_webpage.outputs.html_content}}"},
    }  # fmt: skip
    assert shown["outputs"][0]["value"] == "{{tasks.summarize_text.outputs.summary}}"
    again = await flows.create({**shown})
    assert (await flows.get(f"/workflows/{again}", dialect="refs"))["definition"] == parsed(REFS[0])
    assert (await flows.ask("GET", f"/workflows/{again}?dialect=yaml")).status_code == 400


BAD: list[tuple[Json, list[tuple[str | None, str]]]] = [
    ({}, [(None, "no_dialect")]),
    ({"name": "x", "title": "y", "tasks": []}, [("title", "mixed_dialects")]),
    (
        template(tasks=[{"ref": "greet", "type": "text.templat", "input": {"template": "x"}}]),
        [("tasks[0].type", "unknown_type")],
    ),
    (
        template(tasks=[
            {"ref": "greet", "type": "text.template", "input": {"template": "{{input.whom}}", "colour": "red"}},
            {"ref": "greet", "type": "text.size", "input": {}},
        ]),
        [("tasks[0].input.colour", "unknown_input"), ("tasks[0].input.template", "unknown_reference"),
         ("tasks[1].input.text", "missing"), ("tasks[1].ref", "duplicate_name")],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), BAD)
async def test_bad_definitions_are_400_with_every_fault(
    flows: Flows, body: Json, expected: list[tuple[str | None, str]]
) -> None:
    for path in ("/workflows", "/workflows/validate"):
        answer = await flows.ask("POST", path, body=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "flow_invalid"), answer.text
        assert sorted(faults(answer), key=str) == sorted(expected, key=str)
    assert (await flows.get("/workflows"))["total"] == 0


async def test_validating_keeps_nothing(flows: Flows) -> None:
    answer = await flows.ask("POST", "/workflows/validate", body=TASKS[0])
    assert (answer.status_code, answer.json()) == (200, {"valid": True, "dialect": "tasks"})
    assert (await flows.get("/workflows"))["total"] == 0


async def test_every_change_is_a_version_and_an_equal_one_is_none(flows: Flows) -> None:
    workflow = await flows.create(template())
    path = f"/workflows/{workflow}"
    same = await flows.ask("PUT", path, body=template())
    assert (same.status_code, same.json()["workflow_version"], same.headers["etag"]) == (200, 1, '"1"')
    changed = await flows.ask("PUT", path, body={**template("good day"), "expected_version": 1})
    assert (changed.json()["workflow_version"], changed.json()["name"]) == (2, "good day")
    late = await flows.ask("PUT", path, body={**template("late"), "expected_version": 1})
    assert (late.status_code, late.json()["code"], late.json()["workflow_version"]) == (409, "version_conflict", 2)
    stale = await flows.ask("PUT", path, body=template("stale"), headers={"If-Match": '"1"'})
    assert (stale.status_code, stale.headers["etag"]) == (412, '"2"')
    for wrong in ("1", True, 1.5):
        answer = await flows.ask("PUT", path, body={**template("late"), "expected_version": wrong})
        assert (answer.status_code, faults(answer)) == (400, [("expected_version", "flow_invalid")])
    listed = await flows.get(f"{path}/versions")
    assert [one["workflow_version"] for one in listed["data"]] == [2, 1]
    assert (await flows.get(f"{path}/versions/1"))["definition"]["name"] == "hello"
    assert (await flows.get(path))["definition"]["name"] == "good day"
    for number in ("3", "0", "x", "99999999999"):
        assert (await flows.ask("GET", f"{path}/versions/{number}")).status_code == 404


async def test_a_change_is_answered_in_its_own_dialect(flows: Flows) -> None:
    workflow = await flows.create(template())
    answer = await flows.ask("PUT", f"/workflows/{workflow}", body=TASKS[0])
    assert answer.json()["definition"] == parsed(TASKS[0])
    assert (await flows.get(f"/workflows/{workflow}"))["dialect"] == "refs"
    assert (await flows.get(f"/workflows/{workflow}/versions"))["data"][0]["dialect"] == "tasks"


async def test_a_deleted_workflow_is_gone(flows: Flows) -> None:
    workflow = await flows.create(template())
    path = await flows.start(workflow, {"input": {"who": "you"}})
    refused = await flows.ask("DELETE", f"/workflows/{workflow}")
    assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
    await flows.ask("POST", f"{path}/cancel")
    assert (await flows.ask("DELETE", f"/workflows/{workflow}")).status_code == 204
    assert (await flows.ask("GET", f"/workflows/{workflow}")).status_code == 404
    assert (await flows.ask("POST", f"/workflows/{workflow}/execute", body={})).status_code == 404
    assert (await flows.get("/workflows"))["total"] == 0
    assert (await flows.get(path))["status"] == "CANCELLED"  # until it is forgotten
    assert (await flows.get(f"/workflows/{workflow}/executions"))["total"] == 1


async def test_lists_are_searched_and_sorted(flows: Flows) -> None:
    for name in ("beta", "alpha"):
        await flows.create(template(name))
    names = [one["name"] for one in (await flows.get("/workflows", order_by="name"))["data"]]
    assert names == ["alpha", "beta"]
    found = await flows.get("/workflows", search="bet", project_id=str(flows.project))
    assert [one["name"] for one in found["data"]] == ["beta"]
    assert "definition" not in found["data"][0]


# ---- which project


async def test_the_project_is_named_or_the_only_one_or_the_default(flows: Flows) -> None:
    other = await flows.people.project("other")
    member = flows.by(await flows.people.add("member", projects={flows.project: "member", other: "member"}))
    refused = await member.ask("POST", "/workflows", body=template())
    assert (refused.status_code, refused.json()["code"], refused.json()["param"]) == (
        422, "missing_fields", "project_id",
    )  # fmt: skip
    for named in (
        {"body": {**template(), "project_id": str(other)}},
        {"body": template(), "params": {"project_id": other}},
    ):
        made = await member.ask("POST", "/workflows", **named)
        shown = await member.get(f"/workflows/{made.json()['workflow_id']}")
        assert shown["project_id"] == str(other)
    default = await flows.people.project("default")
    admin = flows.by(await flows.people.add("admin"))
    assert (await admin.get(f"/workflows/{await admin.create(template())}"))["project_id"] == str(default)
    bound = flows.by(await flows.people.key_for(member.person.id, only_project=other))
    assert (await bound.get(f"/workflows/{await bound.create(template())}"))["project_id"] == str(other)


async def test_a_project_of_others_is_unknown(flows: Flows) -> None:
    other = await flows.people.project("other")
    for project in (str(other), "7e57ab1e-0000-4000-8000-000000000000"):
        answer = await flows.ask("POST", "/workflows", body={**template(), "project_id": project})
        assert (answer.status_code, answer.json()["code"]) == (422, "reference_not_found")
    wrong = await flows.ask("POST", "/workflows", body={**template(), "project_id": 7})
    assert (wrong.status_code, faults(wrong)) == (400, [("project_id", "invalid_format")])
    viewer = flows.by(await flows.people.add("member", projects={flows.project: "viewer"}))
    assert (await viewer.ask("POST", "/workflows", body=template())).status_code == 403


async def test_a_project_with_workflows_is_not_deleted(flows: Flows) -> None:
    workflow = await flows.create(template())
    admin = flows.by(await flows.people.add("admin"))
    path = f"/projects/{flows.project}"
    refused = await flows.client.delete(path, headers=admin.person.headers)
    assert (refused.status_code, refused.json()["detail"]) == (409, "The project still has 1 flows.")
    assert (await flows.ask("DELETE", f"/workflows/{workflow}")).status_code == 204
    assert (await flows.client.delete(path, headers=admin.person.headers)).status_code == 204


async def test_a_project_has_so_many_workflows(flows: Flows) -> None:
    flows.context.settings = flows.context.settings.model_copy(update={"flows_per_project": 1})
    await flows.create(template())
    answer = await flows.ask("POST", "/workflows", body=template("second"))
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_flows")


async def test_a_definition_that_no_job_could_carry_is_refused(flows: Flows) -> None:
    tasks = [
        {"ref": f"t{number}", "type": "text.size", "input": {"text": "x" * 60_000}} for number in range(16)
    ]  # fmt: skip
    answer = await flows.ask("POST", "/workflows", body=template(tasks=tasks, output=[]))
    assert (answer.status_code, faults(answer)) == (400, [(None, "too_long")])


async def test_a_repeated_creation_makes_one(flows: Flows) -> None:
    answers = [
        await flows.ask("POST", "/workflows", body=template(), headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["idempotency-replayed"] == "true"
    assert (await flows.get("/workflows"))["total"] == 1


# ---- credentials


async def _credential(flows: Flows, **more: Any) -> str:
    body = {"name": "c", "type": "openai", "fields": {"api_key": "sk-1"}, **more}
    answer = await flows.client.post("/credentials", json=body, headers=flows.person.headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def _naming(credential: Any) -> Json:
    inputs = {"text": "x", "model": "m", "credential_id": credential}
    return template(tasks=[{"ref": "sum", "type": "OpenAI.Text.Summarize", "input": inputs}], output=[])


async def test_credentials_of_others_are_unknown(flows: Flows) -> None:
    own = await _credential(flows)
    assert await flows.create(_naming(own))
    second = await flows.people.add("member", projects={flows.project: "member"})
    for person, credential in ((second, own), (flows.person, "7e57ab1e-0000-4000-8000-000000000000")):
        answer = await flows.by(person).ask("POST", "/workflows", body=_naming(credential))
        assert (answer.status_code, answer.json()["code"]) == (422, "reference_not_found")
        assert faults(answer) == [("tasks[0].input.credential_id", "reference_not_found")]
    secret = await flows.ask("POST", "/workflows", body=_naming("sk-this-is-a-secret"))
    assert (secret.status_code, faults(secret)) == (400, [("tasks[0].input.credential_id", "wrong_type")])
    assert "sk-this" not in secret.text


# ---- task types


async def test_task_types_say_what_they_take(flows: Flows) -> None:
    listed = await flows.get("/task-types", limit=200)
    assert listed["total"] == len(flows.context.task_types)
    one = await flows.get("/task-types/Web.ExtractText")
    assert one["name"] == "web.extract_text"
    assert {"name", "type", "required", "default", "description", "example"} <= set(one["inputs"][0])
    assert one in listed["data"]
    assert (await flows.ask("GET", "/task-types/web.nothing")).status_code == 404


# ---- applied by name


async def test_two_who_apply_one_definition_make_one_flow(flows: Flows) -> None:
    async with flows.context.database.transaction() as session:
        await projects.get(session, flows.project, lock=True)
        sent = [asyncio.create_task(flows.ask("PUT", "/workflows", body=template())) for _ in range(3)]
        await flows.until_locked(3)
    answers = [await one for one in sent]
    assert sorted(one.status_code for one in answers) == [200, 200, 201]
    assert sorted(one.json()["result"] for one in answers) == ["created", "unchanged", "unchanged"]
    assert len({one.json()["workflow_id"] for one in answers}) == 1
    assert (await flows.get("/workflows"))["total"] == 1


async def test_a_definition_is_applied_to_the_flow_of_its_name(flows: Flows) -> None:
    async def apply(**more: Any) -> httpx.Response:
        return await flows.ask("PUT", "/workflows", body=template(**more), params={"project_id": str(flows.project)})

    early = await apply(expected_version=1)
    assert (early.status_code, early.json()["code"]) == (409, "version_conflict")
    made = await apply()
    assert (made.status_code, made.json()["result"], made.headers["etag"]) == (201, "created", '"1"')
    assert made.headers["location"] == f"/flow/workflows/{made.json()['workflow_id']}"
    changed = await apply(description="new", expected_version=1)
    assert (changed.status_code, changed.json()["result"], changed.json()["workflow_version"]) == (200, "changed", 2)
    assert changed.json()["workflow_id"] == made.json()["workflow_id"]
    stale = await apply(description="newer", expected_version=1)
    assert (stale.status_code, stale.json()["code"]) == (409, "version_conflict")
    bad = await apply(tasks=[])
    assert (bad.status_code, bad.json()["code"]) == (400, "flow_invalid")
    twin = await flows.create(template())  # as ever, POST makes another one
    several = await apply()
    assert (several.status_code, several.json()["code"]) == (409, "conflict")
    assert (await flows.ask("DELETE", f"/workflows/{twin}")).status_code == 204
    assert (await apply()).json()["result"] == "changed"

"""Executions as rows and answers: the seeds' own calls, both ways of writing, refusals, limits, who may. Nothing runs them."""

import re
from typing import Any

import pytest

from tests.services.app.flows.conftest import REFS, TASKS, Flows, Json, faults, parsed, template, waiting

EX, WE = re.compile(r"ex-[a-z0-9]{8}"), re.compile(r"we-[a-z0-9]{8}")


async def test_the_calls_of_the_first_seed(flows: Flows) -> None:
    create, _created, execute, executed, status, listing, with_webhook = REFS
    workflow = await flows.create(create)
    answer = await flows.ask("POST", f"/workflows/{workflow}/execute", body=execute)
    started = answer.json()
    assert (answer.status_code, list(started)) == (202, list(parsed(executed)))
    assert {**started, "execution_id": "", "workflow_id": ""} == {
        **parsed(executed),
        "execution_id": "",
        "workflow_id": "",
    }
    assert EX.fullmatch(started["execution_id"])
    path = f"/workflows/{workflow}/executions/{started['execution_id']}"
    assert answer.headers["location"] == f"/flow{path}"
    shown = await flows.get(path)
    assert list(shown)[:5] == list(parsed(status))
    assert shown["tasks"] == [{**one, "status": "PENDING"} for one in parsed(status)["tasks"]]
    listed = await flows.get(f"/workflows/{workflow}/executions")
    assert [list(one) for one in listed["executions"]] == [list(parsed(listing)["executions"][0])]
    assert listed["executions"] == listed["data"]
    hooked = await flows.ask("POST", f"/workflows/{workflow}/execute", body=with_webhook)
    assert hooked.status_code == 202
    url = await flows.value(
        "SELECT webhook_url FROM flow.execution WHERE slug = :slug", slug=hooked.json()["execution_id"]
    )
    assert url == parsed(with_webhook)["webhook_url"]


async def test_the_calls_of_the_second_seed(flows: Flows) -> None:
    create, _created, execute, executed, status, listing, with_webhook = TASKS
    workflow = await flows.create(create)
    wrong = await flows.ask("POST", f"/workflows/{workflow}/executions", body=execute)
    assert (wrong.status_code, wrong.json()["code"]) == (400, "flow_input_invalid")
    assert sorted(faults(wrong), key=str) == [("inputs.text", "missing"), ("inputs.webpage_url", "unknown_input")]
    answer = await flows.ask("POST", f"/workflows/{workflow}/executions", body={"inputs": {"text": "Hello"}})
    started = answer.json()
    assert (answer.status_code, list(started)) == (202, list(parsed(executed)))
    assert WE.fullmatch(started["workflow_execution_id"])
    assert (started["workflow_id"], started["workflow_version"], started["status"]) == (workflow, 1, "PENDING")
    shown = await flows.get(f"/workflows/{workflow}/executions/{started['workflow_execution_id']}")
    assert list(shown)[:5] == list(parsed(status))
    assert shown["tasks"] == [{"name": "text_to_speech", "status": "PENDING"}]
    listed = await flows.get(f"/workflows/{workflow}/executions")
    assert [list(one) for one in listed["executions"]] == [list(parsed(listing)["executions"][0])]
    body = {**parsed(with_webhook), "inputs": {"text": "Hello"}}
    assert (await flows.ask("POST", f"/workflows/{workflow}/executions", body=body)).status_code == 202
    assert await flows.value("SELECT count(*) FROM flow.execution WHERE webhook_url = :url",
                             url=body["monitoring"]["webhook"]) == 1  # fmt: skip


@pytest.mark.parametrize("route", ["execute", "executions"])
async def test_both_routes_take_both_ways_of_writing(flows: Flows, route: str) -> None:
    workflow = await flows.create(template())
    path = f"/workflows/{workflow}/{route}"
    refs = (await flows.ask("POST", path, body={"input": {"who": "a"}})).json()
    tasks = (await flows.ask("POST", path, body={"inputs": {"who": "b"}})).json()
    one, other = refs["execution_id"], tasks["workflow_execution_id"]
    for name in (other, other.replace("we-", "ex-")):  # aliases
        shown = await flows.get(f"/workflows/{workflow}/executions/{name}")
        assert (shown["execution_id"], shown["input"]) == (other.replace("we-", "ex-"), {"who": "b"})
    asked = await flows.get(f"/workflows/{workflow}/executions/{one}", dialect="tasks")
    assert (asked["workflow_execution_id"], asked["inputs"]) == (one.replace("ex-", "we-"), {"who": "a"})
    assert asked["tasks"] == [{"name": "greet", "status": "PENDING"}]
    empty = await flows.create(template(input=[], tasks=[
        {"ref": "greet", "type": "text.template", "input": {"template": "Hello"}}
    ]))  # fmt: skip
    nothing: tuple[Json | None, ...] = (None, {})
    for body in nothing:
        answer = await flows.ask("POST", f"/workflows/{empty}/{route}", body=body)
        assert answer.status_code == 202
        assert ("execution_id" in answer.json()) == (route == "execute")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input": {}}, [("input.who", "missing")]),
        ({"inputs": {"who": 7, "x": 1}}, [("inputs.who", "wrong_type"), ("inputs.x", "unknown_input")]),
        ({"input": {"who": "x"}, "inputs": {}}, [("inputs", "mixed_dialects")]),
        ({"input": {"who": "x"}, "monitoring": {}}, [("monitoring", "mixed_dialects")]),
        ({"input": ["x"]}, [("input", "wrong_type")]),
        ({"input": {"who": "x"}, "colour": "red"}, [("colour", "unknown_member")]),
        ({"input": {"who": "x"}, "webhook_url": "ftp://x"}, [("webhook_url", "not_allowed")]),
        ({"input": {"who": "x"}, "webhook_url": "http://u:p@x/"}, [("webhook_url", "not_allowed")]),
        ({"input": {"who": "x"}, "webhook_url": 5}, [("webhook_url", "wrong_type")]),
        ({"inputs": {"who": "x"}, "monitoring": {"webhook": "nope", "x": 1}},
         [("monitoring.webhook", "not_allowed"), ("monitoring.x", "unknown_member")]),
        ({"input": {"who": "x" * 70_000}}, [("input", "too_long")]),
    ],
)  # fmt: skip
async def test_bad_inputs_are_400_with_every_fault(
    flows: Flows, body: Json, expected: list[tuple[str | None, str]]
) -> None:
    workflow = await flows.create(template())
    answer = await flows.ask("POST", f"/workflows/{workflow}/execute", body=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "flow_input_invalid"), answer.text
    assert sorted(faults(answer), key=str) == sorted(expected, key=str)
    assert (await flows.get("/executions"))["total"] == 0


async def test_an_execution_runs_the_version_that_was_current(flows: Flows) -> None:
    workflow = await flows.create(template())
    path = await flows.start(workflow, {"input": {"who": "you"}})
    await flows.ask("PUT", f"/workflows/{workflow}", body=waiting())
    shown = await flows.get(path)
    assert (shown["workflow_version"], [one["ref"] for one in shown["tasks"]]) == (1, ["greet"])
    stored = await flows.value("SELECT input FROM jobs.job WHERE id = :id", id=await flows.job_of(path))
    assert (stored["version"], stored["inputs"], stored["flow"]["name"]) == (1, {"who": "you"}, "hello")


async def test_an_execution_carries_a_large_definition(flows: Flows) -> None:
    """Beyond what other jobs take as input."""
    tasks = [{"ref": f"t{number}", "type": "text.size", "input": {"text": "x" * 50_000}} for number in range(16)]
    path = await flows.start(await flows.create(template(tasks=tasks, output=[])), {"input": {"who": "x" * 60_000}})
    assert len((await flows.get(path))["tasks"]) == 16


async def test_executions_are_listed_by_flow_project_and_status(flows: Flows) -> None:
    workflow, other = await flows.create(template()), await flows.create(TASKS[0])
    paths = [await flows.start(workflow, {"input": {"who": "x"}}) for _ in range(3)]
    await flows.ask("POST", f"/workflows/{other}/executions", body={"inputs": {"text": "x"}})
    await flows.ask("POST", f"{paths[0]}/cancel")
    ids = [path.rsplit("/", 1)[1] for path in paths]
    listed = await flows.get(f"/workflows/{workflow}/executions", limit=2)
    assert [one["execution_id"] for one in listed["executions"]] == ids[:0:-1]
    rest = await flows.get(f"/workflows/{workflow}/executions", limit=2, cursor=listed["next_cursor"])
    assert [one["execution_id"] for one in rest["executions"]] == ids[:1]
    cancelled = await flows.get(f"/workflows/{workflow}/executions", status="CANCELLED")
    assert [one["execution_id"] for one in cancelled["data"]] == ids[:1]
    everything = await flows.get("/executions", project_id=str(flows.project), status="PENDING")
    assert everything["total"] == 3
    assert {one["workflow_id"] for one in everything["data"]} == {workflow, other}
    assert "workflow_execution_id" in everything["data"][0]  # each in its own flow's words
    assert "execution_id" in (await flows.get("/executions", dialect="refs"))["data"][0]
    wrong = await flows.ask("GET", "/executions?status=moon")
    assert (wrong.status_code, wrong.json()["code"], wrong.json()["param"]) == (400, "invalid_query", "status")


async def test_an_execution_belongs_to_its_workflow(flows: Flows) -> None:
    workflow, other = await flows.create(template()), await flows.create(template("other"))
    path = await flows.start(workflow, {"input": {"who": "x"}})
    execution = path.rsplit("/", 1)[1]
    for wrong in (f"/workflows/{other}/executions/{execution}", f"/workflows/{workflow}/executions/ex-00000000",
                  f"/workflows/{workflow}/executions/x", f"/workflows/wf-00000000/executions/{execution}"):  # fmt: skip
        for method, more in (
            ("GET", ""),
            ("GET", "/events"),
            ("GET", "/tasks/greet"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            assert (await flows.ask(method, wrong + more)).status_code == 404, (method, wrong, more)
    job = await flows.job_of(path)
    assert (await flows.get(f"/workflows/{workflow}/executions/{job}"))["execution_id"] == execution


async def test_what_is_cancelled_waits_no_more(flows: Flows) -> None:
    workflow = await flows.create(template())
    path = await flows.start(workflow, {"input": {"who": "x"}})
    answers = [await flows.ask("POST", f"{path}/cancel") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    shown = answers[0].json()
    assert (shown["status"], shown["tasks"]) == ("CANCELLED", [{"ref": "greet", "status": "CANCELLED"}])
    late = await flows.ask("POST", f"{path}/events/approval", body={"yes": True})
    assert (late.status_code, late.json()["code"]) == (409, "job_finished")
    again = await flows.ask("POST", f"{path}/retry")
    assert (again.status_code, again.json()["code"]) == (409, "not_retryable")
    events = await flows.ask("GET", f"{path}/events")
    assert [line for line in events.text.splitlines() if line.startswith("event: ")]
    seen = re.findall(r"(?m)^id: (\d+)$", events.text)[-1]
    assert (await flows.ask("GET", f"{path}/events", headers={"Last-Event-ID": seen})).status_code == 204


async def test_an_execution_that_has_ended_can_be_forgotten(flows: Flows) -> None:
    workflow = await flows.create(template())
    path = await flows.start(workflow, {"input": {"who": "x"}})
    live = await flows.ask("DELETE", path)
    assert (live.status_code, live.json()["code"]) == (409, "conflict")
    await flows.ask("POST", f"{path}/cancel")
    assert (await flows.ask("DELETE", path)).status_code == 204
    assert (await flows.ask("GET", path)).status_code == 404
    assert await flows.value("SELECT count(*) FROM jobs.job") == 0
    assert await flows.value("SELECT count(*) FROM flow.execution") == 0


async def test_names_of_events_are_bounded(flows: Flows) -> None:
    path = await flows.start(await flows.create(waiting()), {"input": {"who": "x"}})
    for name in ("child:ask", "x" * 65, "a%0Ab"):
        assert (await flows.ask("POST", f"{path}/events/{name}", body={})).status_code == 404
    large = await flows.ask("POST", f"{path}/events/approval", body={"x": "y" * 70_000})
    assert (large.status_code, large.json()["code"]) == (422, "validation_failed")
    assert await flows.value("SELECT count(*) FROM jobs.signal") == 0


# ---- limits, repetition


async def test_a_project_has_so_many_executions_in_flight(flows: Flows) -> None:
    flows.context.settings = flows.context.settings.model_copy(update={"flow_executions_in_flight": 1})
    workflow = await flows.create(template())
    path = await flows.start(workflow, {"input": {"who": "x"}})
    answer = await flows.ask("POST", f"/workflows/{workflow}/execute", body={"input": {"who": "x"}})
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_executions")
    assert int(answer.headers["retry-after"]) > 0
    await flows.ask("POST", f"{path}/cancel")
    await flows.start(workflow, {"input": {"who": "x"}})


async def test_executions_are_no_jobs_of_the_projects_quota(flows: Flows) -> None:
    await flows.start(await flows.create(template()), {"input": {"who": "x"}})
    admin = await flows.people.add("admin")
    await flows.client.patch(
        f"/projects/{flows.project}", json={"quotas": {"jobs_in_flight": 1}}, headers=admin.headers
    )
    body = {"workflow_total_steps": 4, "step_number": 1, "modality": "llm", "provider_type": "hugging_face",
            "uri": "people/model", "name": "m", "project_id": str(flows.project), "trigger_workflow": True}  # fmt: skip
    begun = await flows.client.post("/models/local-model-workflow", json=body, headers=flows.person.headers)
    assert begun.status_code == 200, begun.text


async def test_a_repeated_start_starts_one(flows: Flows) -> None:
    workflow = await flows.create(template())
    answers = [
        await flows.ask("POST", f"/workflows/{workflow}/execute", body={"input": {"who": "x"}},
                        headers={"Idempotency-Key": "k", "X-Provider-Key": "sk-not-to-be-kept"})
        for _ in range(2)
    ]  # fmt: skip
    assert answers[0].json() == answers[1].json()
    assert (await flows.get("/executions"))["total"] == 1
    assert await flows.value("""SELECT count(*) FROM platform.idempotency i WHERE i::text LIKE '%sk-not%'""") == 0


# ---- who may


async def test_others_see_nothing_and_viewers_change_nothing(flows: Flows) -> None:
    workflow = await flows.create(waiting())
    path = await flows.start(workflow, {"input": {"who": "x"}})
    elsewhere = flows.by(await flows.people.add("member", projects={await flows.people.project("other"): "member"}))
    viewer = flows.by(await flows.people.add("member", projects={flows.project: "viewer"}))
    colleague = flows.by(await flows.people.add("member", projects={flows.project: "member"}))
    reads: list[tuple[str, str, Any]] = [
        ("GET", f"/workflows/{workflow}", None), ("GET", f"/workflows/{workflow}/versions", None),
        ("GET", f"/workflows/{workflow}/executions", None), ("GET", path, None), ("GET", f"{path}/tasks/greet", None),
    ]  # fmt: skip
    writes: list[tuple[str, str, Any]] = [
        ("PUT", f"/workflows/{workflow}", template()), ("DELETE", f"/workflows/{workflow}", None),
        ("POST", f"/workflows/{workflow}/execute", {"input": {"who": "x"}}), ("POST", f"{path}/events/approval", {}),
        ("POST", f"{path}/cancel", None), ("POST", f"{path}/retry", None), ("DELETE", path, None),
    ]  # fmt: skip
    for method, where, body in (*reads, *writes):
        assert (await elsewhere.ask(method, where, body=body)).status_code == 404, where
    for method, where, body in reads:
        assert (await viewer.ask(method, where, body=body)).status_code == 200, where
    for method, where, body in writes:
        assert (await viewer.ask(method, where, body=body)).status_code == 403, where
    assert (await elsewhere.get("/executions"))["total"] == 0
    assert (await colleague.ask("POST", f"{path}/events/approval", body={})).status_code == 200
    for verb in ("cancel", "retry"):  # of whoever started it
        refused = await colleague.ask("POST", f"{path}/{verb}")
        assert (refused.status_code, refused.json()["code"]) == (403, "not_owner")

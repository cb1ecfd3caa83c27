"""Executions on a real engine, through the API: what tasks took and gave, events, answers, runs after a failure, sub-flows."""

import asyncio
import json
from typing import Any

import pytest

from services.app.flows import orphans
from services.app.flows.outcomes import ExecutionChange, StatusAnnouncer
from services.app.main import hooks
from services.app.maintenance import Maintenance
from shared.contracts.flows import RUN_FLOW
from tests.services.app.flows.conftest import Flows, Json, engine_of, template, waiting

pytestmark = pytest.mark.usefixtures("engine")


def _events(text: str) -> list[tuple[str, Json]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


async def test_an_execution_gives_its_outputs(flows: Flows) -> None:
    path = await flows.start(await flows.create(template()), {"input": {"who": "you"}})
    shown = await flows.until(path)
    assert (shown["status"], shown["output"], shown["error"]) == ("COMPLETED", {"said": "Hello you"}, None)
    assert shown["tasks"] == [{"ref": "greet", "status": "COMPLETED"}]
    assert shown["started_at"] <= shown["completed_at"]
    task = await flows.get(f"{path}/tasks/greet")
    assert (task["type"], task["status"], task["attempts"]) == ("text.template", "COMPLETED", 1)
    assert (task["input"], task["output"]) == ({"template": "Hello you"}, {"text": "Hello you"})
    assert task["started_at"] <= task["completed_at"]
    spoken = await flows.get(f"{path}/tasks/greet", dialect="tasks")
    assert (spoken["name"], spoken["inputs"]) == ("greet", {"template": "Hello you"})
    for name in ("nobody", "a%00b", "greet%00", "%ff"):
        assert (await flows.ask("GET", f"{path}/tasks/{name}")).status_code == 404, name
    listed = (await flows.get("/executions"))["data"][0]
    assert (listed["status"], listed["completed_at"]) == ("COMPLETED", shown["completed_at"])


async def test_events_tell_of_every_task_until_the_end(flows: Flows) -> None:
    path = await flows.start(await flows.create(template()), {"input": {"who": "you"}})
    answer = await flows.ask("GET", f"{path}/events")  # ends with the execution
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = _events(answer.text)
    assert events[-1][0] == "job"
    assert events[-1][1]["state"] == "succeeded"
    assert ("greet", "succeeded") in [(data["key"], data["state"]) for name, data in events if name == "step"]


async def test_a_person_answers(flows: Flows) -> None:
    path = await flows.start(await flows.create(waiting()), {"input": {"who": "you"}})
    seen = await flows.until(path, "RUNNING")
    while [one["status"] for one in seen["tasks"]] != ["COMPLETED", "RUNNING", "PENDING"]:
        seen = await flows.get(path)
    assert (await flows.get(f"{path}/tasks/last"))["input"] == {}  # not known yet
    answer = await flows.ask("POST", f"{path}/events/approval", body={"word": "yes"})
    assert answer.status_code == 200
    shown = await flows.until(path)
    assert (shown["status"], shown["output"]) == ("COMPLETED", {"word": "yes"})
    assert (await flows.get(f"{path}/tasks/last"))["input"] == {"template": "yes"}


async def test_a_failed_execution_runs_again_from_its_failed_task(flows: Flows) -> None:
    path = await flows.start(await flows.create(waiting(timeout=0.05)), {"input": {"who": "you"}})
    failed = await flows.until(path)
    assert failed["status"] == "FAILED"
    assert [one["status"] for one in failed["tasks"]] == ["COMPLETED", "FAILED", "SKIPPED"]
    ask = await flows.get(f"{path}/tasks/ask")
    assert (ask["status"], ask["error"]["code"], ask["attempts"]) == ("FAILED", "timed_out", 1)
    assert ask["started_at"] <= ask["completed_at"]
    assert failed["error"]["code"] == "timed_out"
    assert failed["output"] is None
    before = await flows.get(f"{path}/tasks/greet")
    assert (await flows.ask("POST", f"{path}/events/approval", body={})).status_code == 409
    again = await flows.ask("POST", f"{path}/retry", headers={"X-Provider-Key": "sk-again"})
    assert (again.status_code, again.json()["status"], again.json()["attempt"]) == (200, "PENDING", 2)
    assert (await flows.until(path))["status"] == "FAILED"
    assert await flows.get(f"{path}/tasks/greet") == before
    assert await flows.value("SELECT count(*) FROM flow.secret") == 0


async def test_a_task_fails_in_its_own_words(flows: Flows) -> None:
    tasks = [{"ref": "greet", "type": "text.template", "input": {"template": "\\{{name}}", "values": {}}}]
    path = await flows.start(await flows.create(template(tasks=tasks)), {"input": {"who": "you"}})
    shown = await flows.until(path)
    task = await flows.get(f"{path}/tasks/greet")
    assert (shown["status"], task["status"]) == ("FAILED", "FAILED")
    assert task["error"]["code"] == "missing_value"
    assert "There is no value for {{name}}" in task["error"]["message"]
    assert task["output"] is None


async def test_skipped_and_passed_over_tasks(flows: Flows) -> None:
    tasks = [
        {"ref": "never", "type": "text.size", "input": {"text": "x"}, "condition": False},
        {"ref": "fails", "type": "text.template", "input": {"template": "\\{{a}}"}, "on_error": "continue"},
        *template()["tasks"],
    ]
    path = await flows.start(await flows.create(template(tasks=tasks)), {"input": {"who": "you"}})
    shown = await flows.until(path)
    assert shown["status"] == "COMPLETED"
    assert [one["status"] for one in shown["tasks"]] == ["SKIPPED", "FAILED", "COMPLETED"]
    assert (await flows.get(f"{path}/tasks/never"))["reason"]


async def test_the_items_of_a_loop(flows: Flows) -> None:
    body = {"type": "text.template", "input": {"template": "{{item}}/{{index}}/{{input.who}}"}}
    tasks = [{"ref": "each", "type": "flow.foreach", "input": {"items": ["a", "b"], "task": body}}]
    output = [{"name": "all", "type": "list", "value": "{{refs.each.output.results}}"}]
    path = await flows.start(await flows.create(template(tasks=tasks, output=output)), {"input": {"who": "you"}})
    shown = await flows.until(path)
    assert (shown["status"], shown["output"]) == ("COMPLETED", {"all": [{"text": "a/0/you"}, {"text": "b/1/you"}]})
    assert shown["tasks"] == [{"ref": "each", "status": "COMPLETED"}]
    whole = await flows.get(f"{path}/tasks/each")
    assert (whole["items"], whole["input"]["task"]) == ({"succeeded": 2}, body)
    second = await flows.get(f"{path}/tasks/each[1]")
    assert (second["ref"], second["status"]) == ("each[1]", "COMPLETED")
    assert (second["input"], second["output"]) == ({"template": "b/1/you"}, {"text": "b/1/you"})
    for name in ("each[2]", "each[x]", "each[1", "each[99999999]", "greet[0]"):
        assert (await flows.ask("GET", f"{path}/tasks/{name}")).status_code == 404, name


async def test_secret_fields_are_masked_wherever_they_lead(flows: Flows) -> None:
    """`headers` of http.request are secret; the request itself is refused, for the address is private."""
    tasks = [
        {"ref": "ask", "type": "http.request", "on_error": "continue",
         "input": {"url": "http://127.0.0.1:1/{{input.who}}", "headers": {"Authorization": "Bearer {{input.token}}"}}},
        {"ref": "leak", "type": "text.template", "input": {"template": "{{input.token}} {{input.who}}"}},
    ]  # fmt: skip
    body = template(
        tasks=tasks, input=[{"name": "who", "type": "text"}, {"name": "token", "type": "text"}],
        output=[{"name": "token", "type": "text", "value": "{{input.token}}"}],
    )  # fmt: skip
    path = await flows.start(await flows.create(body), {"input": {"who": "you", "token": "tok-secret"}})
    shown = await flows.until(path)
    assert (shown["status"], shown["input"]) == ("COMPLETED", {"who": "you", "token": "•••"})
    assert shown["output"] == {"token": "•••"}
    asked, leak = await flows.get(f"{path}/tasks/ask"), await flows.get(f"{path}/tasks/leak")
    assert (asked["status"], asked["input"]) == ("FAILED", {"url": "http://127.0.0.1:1/you", "headers": "•••"})
    assert leak["input"] == {"template": "••• you"}
    assert "tok-secret" not in json.dumps([shown, asked, await flows.get("/executions")])


async def test_the_providers_key_goes_with_the_end(flows: Flows) -> None:
    path = await flows.start(
        await flows.create(waiting()), {"input": {"who": "you"}}, **{"X-Provider-Key": "sk-provider"}
    )
    assert await flows.value("SELECT count(*) FROM flow.secret") == 1
    for table in ("jobs.job", "jobs.event", "flow.execution", "platform.audit"):
        assert await flows.value(f"SELECT count(*) FROM {table} t WHERE t::text LIKE '%sk-provider%'") == 0, table
    assert "sk-provider" not in json.dumps(await flows.get(path))
    await flows.ask("POST", f"{path}/events/approval", body={"word": "yes"})
    assert (await flows.until(path))["status"] == "COMPLETED"
    assert await flows.value("SELECT count(*) FROM flow.secret") == 0
    wrong = await flows.ask(
        "POST", path.replace("/executions/", "/execute?"), body={}, headers={"X-Provider-Key": "a b"}
    )
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_request")


# ---- sub-flows


def _parent(child: str, **more: Any) -> Json:
    task = {
        "ref": "sub",
        "type": "flow.subworkflow",
        "input": {"workflow_id": child, "input": {"who": "{{input.who}}"}},
    }
    output = [{"name": "said", "type": "any", "value": "{{refs.sub.output.output}}"}]
    return template("parent", tasks=[task], output=output, **more)


async def test_a_sub_flow_gives_its_outputs_to_the_parent(flows: Flows) -> None:
    child = await flows.create(template())
    path = await flows.start(await flows.create(_parent(child)), {"input": {"who": "you"}})
    shown = await flows.until(path)
    assert (shown["status"], shown["output"]) == ("COMPLETED", {"said": {"said": "Hello you"}}), shown
    own = (await flows.get(f"/workflows/{child}/executions"))["data"]
    assert len(own) == 1
    assert (await flows.get(f"/workflows/{child}/executions/{own[0]['execution_id']}"))["trigger"] == "parent"


async def test_flows_run_each_other_five_levels_deep(flows: Flows) -> None:
    names = [await flows.create(template())]
    for _ in range(5):
        names.append(await flows.create(_parent(names[-1])))
    fine = await flows.until(await flows.start(names[4], {"input": {"who": "you"}}))
    deep = await flows.until(await flows.start(names[5], {"input": {"who": "you"}}))
    assert (fine["status"], deep["status"]) == ("COMPLETED", "FAILED")
    lowest = await flows.value(
        "SELECT error ->> 'code' FROM jobs.job WHERE state = 'failed' ORDER BY created_at DESC LIMIT 1"
    )
    assert lowest == "flow_too_deep"


async def test_a_parent_that_is_run_again_takes_its_child_up_again(flows: Flows) -> None:
    child = await flows.create(waiting(timeout=0.05))
    path = await flows.start(await flows.create(_parent(child)), {"input": {"who": "you"}})
    assert (await flows.until(path))["status"] == "FAILED"
    own = (await flows.get(f"/workflows/{child}/executions"))["data"]
    assert (len(own), own[0]["status"]) == (1, "FAILED")
    await flows.ask("POST", f"{path}/retry")
    assert (await flows.until(path))["status"] == "FAILED"
    again = await flows.get(f"/workflows/{child}/executions/{own[0]['execution_id']}")
    assert again["attempt"] == 2
    assert (await flows.get(f"/workflows/{child}/executions"))["total"] == 1


async def test_a_cancelled_parent_cancels_its_child(flows: Flows) -> None:
    child = await flows.create(waiting())
    path = await flows.start(await flows.create(_parent(child)), {"input": {"who": "you"}})
    while not (own := (await flows.get(f"/workflows/{child}/executions"))["data"]):
        await flows.get(path)
    below = f"/workflows/{child}/executions/{own[0]['execution_id']}"
    await flows.until(below, "RUNNING")
    await flows.ask("POST", f"{path}/cancel")
    assert (await flows.until(path))["status"] == "CANCELLED"
    assert (await flows.until(below))["status"] == "CANCELLED"


async def _child_of(flows: Flows, path: str, child: str) -> str:
    """The path of the newest execution of the flow, once there is one."""
    while not (own := (await flows.get(f"/workflows/{child}/executions"))["data"]):
        await flows.get(path)
    return f"/workflows/{child}/executions/{own[0]['execution_id']}"


async def test_a_parent_that_fails_cancels_the_sub_flows_beside(flows: Flows) -> None:
    child = await flows.create(waiting())
    late = {"ref": "late", "type": "flow.wait_event", "input": {"name": "never", "timeout": 0.3}}
    body = _parent(child, execution="parallel")
    path = await flows.start(await flows.create({**body, "tasks": [*body["tasks"], late]}), {"input": {"who": "you"}})
    shown = await flows.until(path)
    assert (shown["status"], shown["error"]["code"], shown["error"]["step"]) == ("FAILED", "timed_out", "late:wait")
    below = await _child_of(flows, path, child)
    assert (await flows.until(below))["status"] == "CANCELLED"
    await flows.ask("POST", f"{path}/retry")
    assert (await flows.until(path))["error"]["code"] == "timed_out"
    listed = (await flows.get(f"/workflows/{child}/executions"))["data"]
    assert len(listed) == 2  # another one in place of that which was cancelled
    assert {
        (await flows.until(f"/workflows/{child}/executions/{one['execution_id']}"))["status"] for one in listed
    } == {"CANCELLED"}


@pytest.mark.parametrize("how", ["found", "deleted"])
async def test_what_a_parent_has_left_behind_is_cancelled(flows: Flows, how: str) -> None:
    """As after a crash: the parent has ended, and nobody has told its child."""
    child = await flows.create(waiting())
    path = await flows.start(await flows.create(_parent(child)), {"input": {"who": "you"}})
    below = await _child_of(flows, path, child)
    await flows.until(below, "RUNNING")
    parent = await flows.job_of(path)
    while await flows.value("SELECT state FROM jobs.job WHERE id = :id", id=parent) != "waiting":
        await flows.get(path)
    assert await orphans.cancel_all(flows.context) == 0
    await flows.run("UPDATE jobs.job SET state = 'failed', ended_at = now() WHERE id = :id", id=parent)
    if how == "found":
        assert await orphans.cancel_all(flows.context) == 1
    else:
        assert (await flows.ask("DELETE", path)).status_code == 204
    assert (await flows.until(below))["status"] == "CANCELLED"
    assert await orphans.cancel_all(flows.context) == 0


async def test_maintenance_cancels_what_is_left_behind(flows: Flows) -> None:
    async def hold(_name: str) -> int:
        return 1

    child = await flows.create(waiting())
    path = await flows.start(await flows.create(_parent(child)), {"input": {"who": "you"}})
    below = await _child_of(flows, path, child)
    await flows.until(below, "RUNNING")
    running = asyncio.create_task(Maintenance(flows.context, hold).run())
    try:
        await flows.run("UPDATE jobs.job SET state = 'failed' WHERE id = :id", id=await flows.job_of(path))
        flows.context.hub.publish(orphans.ORPHANS)
        assert (await flows.until(below))["status"] == "CANCELLED"
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_sub_flow_that_was_passed_over_is_not_run_again(flows: Flows) -> None:
    child = await flows.create(waiting(timeout=0.05))
    body = _parent(child)
    late = {"ref": "late", "type": "flow.wait_event", "input": {"name": "never", "timeout": 0.05}}
    tasks = [{**body["tasks"][0], "on_error": "continue"}, late]
    path = await flows.start(await flows.create({**body, "tasks": tasks, "output": []}), {"input": {"who": "you"}})
    for attempt in (1, 2):
        shown = await flows.until(path)
        assert (shown["status"], shown["attempt"], shown["error"]["step"]) == ("FAILED", attempt, "late:wait")
        assert [one["status"] for one in shown["tasks"]] == ["FAILED", "FAILED"]
        await flows.ask("POST", f"{path}/retry")
    await flows.until(path)
    assert (await flows.get(await _child_of(flows, path, child)))["attempt"] == 1


async def test_a_parent_gets_what_nobody_may_see(flows: Flows) -> None:
    """The sub-flow's output is made of a secret: its job's result and events hide it, its parent has it."""
    asks = {"ref": "ask", "type": "http.request", "on_error": "continue",
            "input": {"url": "http://127.0.0.1:1/", "headers": {"X-Key": "{{input.who}}"}}}  # fmt: skip
    child = await flows.create(
        template(tasks=[asks], output=[{"name": "key", "type": "text", "value": "{{input.who}}"}])
    )
    body = _parent(child)
    size = {"ref": "size", "type": "text.size", "input": {"text": "{{refs.sub.output.output.key}}"}}
    output = [{"name": "size", "type": "number", "value": "{{refs.size.output.characters}}"}]
    parent = await flows.create({**body, "tasks": [*body["tasks"], size], "output": output})
    path = await flows.start(parent, {"input": {"who": "tok-secret"}})
    shown = await flows.until(path)
    assert (shown["status"], shown["output"]) == ("COMPLETED", {"size": len("tok-secret")})
    below = await flows.job_of(await _child_of(flows, path, child))
    headers = flows.person.headers
    job = (await flows.client.get(f"/jobs/{below}", headers=headers)).json()
    assert job["result"] == {"outputs": {"key": "•••"}}
    events = await flows.client.get(f"/jobs/{below}/events", headers={**headers, "Last-Event-ID": "999999"})
    assert ("job", "succeeded") in [(name, data["state"]) for name, data in _events(events.text)]
    listed = await flows.client.get("/jobs", params={"resource_id": job["resource"]["id"]}, headers=headers)
    assert "tok-secret" not in json.dumps([job, listed.json()]) + events.text
    for table in ("jobs.event", "platform.audit"):
        assert await flows.value(f"SELECT count(*) FROM {table} t WHERE t::text LIKE '%tok-secret%'") == 0, table


async def test_a_sub_flow_is_of_the_same_project(flows: Flows) -> None:
    other = flows.by(await flows.people.add("member", projects={await flows.people.project("other"): "member"}))
    foreign = await other.create(template())
    path = await flows.start(await flows.create(_parent(foreign)), {"input": {"who": "you"}})
    shown = await flows.until(path)
    assert (shown["status"], shown["error"]["code"]) == ("FAILED", "flow_gone")
    assert (await other.get("/executions"))["total"] == 0


# ---- who is told


async def test_each_new_status_is_told_once(flows: Flows) -> None:
    told: list[tuple[str, str]] = []

    async def listener(_context: Any, _session: Any, change: ExecutionChange) -> None:
        told.append((change.status, (await change.view())["status"]))
        if change.status == "COMPLETED":
            raise ValueError("a listener's fault keeps nothing from ending")

    found = hooks(flows.context)
    found[RUN_FLOW]._announcer = StatusAnnouncer(flows.context, [listener])  # type: ignore[attr-defined]
    flows.context.ledger.hooks = found
    async with engine_of(flows.context):
        path = await flows.start(await flows.create(waiting()), {"input": {"who": "you"}})
        await flows.until(path, "RUNNING")
        await flows.ask("POST", f"{path}/events/approval", body={"word": "yes"})
        shown = await flows.until(path)
    assert shown["status"] == "COMPLETED"
    assert told == [("RUNNING", "RUNNING"), ("COMPLETED", "COMPLETED")]

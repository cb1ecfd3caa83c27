"""What is told to whom: jobs, endpoints and executions, in the transaction of their change."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.endpoints import service as endpoints
from services.app.endpoints.tables import EndpointRow
from services.app.flows.outcomes import ExecutionChange
from services.app.jobs.outcome import Outcome
from services.app.webhooks import announcements
from services.app.webhooks.announcements import JobAnnouncer, announce_execution
from shared.jobs.declare import job, step
from shared.jobs.ledger import JobRequest, JobView
from shared.jobs.run import Run, Step
from tests.services.app import rows
from tests.services.app.conftest import People
from tests.services.app.webhooks.conftest import Hooks

URL = "https://bots.example/hook"
Told = list[tuple[str, str]]


@step("Work")
async def work(ctx: Step, argument: int) -> int:
    return argument


@job("announced_test", steps=[work])
async def announced_test(run: Run, argument: int) -> int:
    return int(await run.step(work, argument))


async def nothing(*_arguments: object) -> None:
    pass


async def told(hooks: Hooks) -> Told:
    """(event, state in the data) of all messages, in their order."""
    messages = await hooks.run(
        "SELECT event, body::jsonb -> 'data' ->> 'state' FROM platform.webhook_message ORDER BY number"
    )
    return [(row[0], row[1]) for row in messages]


async def submit(hooks: Hooks, project_id: UUID | None, outcome: Any = nothing) -> UUID:
    context = hooks.context
    context.ledger.hooks = {"announced_test": Outcome(context.ledger, outcome, nothing, JobAnnouncer(context))}
    request = JobRequest(announced_test, 7, project_id=project_id)
    async with context.database.transaction() as session:
        await context.ledger.submit(session, request)
    return request.id


async def move(hooks: Hooks, job_id: UUID, *states: str) -> None:
    for state in states:
        async with hooks.context.database.transaction() as session:
            await hooks.context.ledger.transition(session, job_id, state)


async def test_every_state_of_a_job_is_told(hooks: Hooks) -> None:
    await hooks.subscribe(URL, "job.*")
    job_id = await submit(hooks, hooks.project_id)
    await move(hooks, job_id, "running", "waiting", "running", "succeeded")
    states = ["pending", "running", "waiting", "running", "succeeded"]
    assert await told(hooks) == [(f"job.{state}", state) for state in states]
    messages = await hooks.messages()
    assert {one.topic for one in messages} == {job_id}
    assert len({one.lane for one in messages}) == 1
    assert [one.sequence for one in messages] == [1, 2, 3, 4, 5]
    shown = (await hooks.client.get(f"/jobs/{job_id}", headers=hooks.member.headers)).json()
    [last] = await hooks.run("SELECT body::jsonb -> 'data' FROM platform.webhook_message WHERE event = 'job.succeeded'")
    assert last[0] == shown


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (["job.succeeded"], ["job.succeeded"]), (["job.succeeded", "job.running"], ["job.running", "job.succeeded"]),
        (["*"], ["job.pending", "job.running", "job.succeeded"]), (["endpoint.*", "execution.*", "job.failed"], []),
    ],
)  # fmt: skip
async def test_only_what_was_asked_for_is_told(hooks: Hooks, events: list[str], expected: list[str]) -> None:
    await hooks.subscribe(URL, *events)
    await move(hooks, await submit(hooks, hooks.project_id), "running", "succeeded")
    assert [event for event, _ in await told(hooks)] == expected


async def test_other_projects_and_disabled_webhooks_hear_nothing(hooks: Hooks, people: People) -> None:
    webhook = await hooks.subscribe(URL)
    await move(hooks, await submit(hooks, await people.project("other")), "running", "succeeded")
    await move(hooks, await submit(hooks, None), "running", "succeeded")
    body = {"url": URL, "events": ["*"], "enabled": False}
    await hooks.client.put(f"/webhooks/{webhook['id']}", json=body, headers=hooks.member.headers)
    await move(hooks, await submit(hooks, hooks.project_id), "running", "succeeded")
    assert await told(hooks) == []


async def test_a_success_that_cannot_be_recorded_is_told_as_the_failure_that_it_is(hooks: Hooks) -> None:
    async def broken(_session: AsyncSession, job: JobView, _spec: dict[str, Any]) -> None:
        if job["state"] == "succeeded":
            raise KeyError("fault")

    await hooks.subscribe(URL, "job.succeeded", "job.failed")
    await move(hooks, await submit(hooks, hooks.project_id, broken), "running", "succeeded")
    assert await told(hooks) == [("job.failed", "failed")]


async def test_what_is_rolled_back_is_not_told(hooks: Hooks) -> None:
    await hooks.subscribe(URL)
    job_id = await submit(hooks, hooks.project_id)
    async with hooks.context.database.transaction() as session:
        await hooks.context.ledger.transition(session, job_id, "running")
        await session.rollback()
    assert [event for event, _ in await told(hooks)] == ["job.pending"]


async def test_a_fault_of_the_outbox_keeps_no_job_from_ending(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_hub: object, session: AsyncSession, *_arguments: object) -> None:
        await session.execute(text("INSERT INTO platform.webhook_message (id) VALUES (NULL)"))

    await hooks.subscribe(URL)
    job_id = await submit(hooks, hooks.project_id)
    monkeypatch.setattr(announcements, "announce", broken)
    await move(hooks, job_id, "running", "succeeded")
    rows_ = await hooks.run("SELECT state FROM jobs.job WHERE id = :id", id=job_id)
    assert rows_.scalar_one() == "succeeded"


@pytest.fixture
async def endpoint(hooks: Hooks) -> EndpointRow:
    cluster, model = rows.cluster(), rows.model(project_id=hooks.project_id)
    await rows.insert(hooks.context.database, cluster, model)
    return rows.endpoint(hooks.project_id, model.id, cluster.id, phase="deploying", state="deploying")


async def changed(context: AppContext, endpoint_id: UUID, **values: Any) -> None:
    async with context.database.transaction() as session:
        endpoint = await session.get(EndpointRow, endpoint_id, with_for_update=True)
        assert endpoint is not None
        for name, value in values.items():
            setattr(endpoint, name, value)
        endpoints.settle(endpoint)


async def test_an_endpoints_states_are_told(hooks: Hooks, endpoint: EndpointRow) -> None:
    await hooks.subscribe(URL, "endpoint.*")
    await rows.insert(hooks.context.database, endpoint)
    worker = {"id": "w", "state": "ready"}
    desired = {"replicas": 1, "concurrency": 1, "generation": 1}
    await changed(hooks.context, endpoint.id, phase="serving", desired=desired, observed={"workers": [worker]})
    await changed(hooks.context, endpoint.id, deploy_config={"x": 1})  # no change of its state
    await changed(hooks.context, endpoint.id, observed={"workers": []})
    await changed(hooks.context, endpoint.id, observed={"workers": [{**worker, "state": "failed", "message": "m"}]})
    states = ["deploying", "running", "unavailable"]
    assert await told(hooks) == [(f"endpoint.{state}", state) for state in states]
    messages = await hooks.messages()
    assert {one.topic for one in messages} == {endpoint.id}
    assert [one.next_at is None for one in messages] == [False, True, True]
    told_last = messages[-1].body
    assert "sealed" not in told_last
    assert '"reason":"No worker is ready."' in told_last


async def test_an_endpoint_that_nobody_asks_about_is_not_told(hooks: Hooks, endpoint: EndpointRow) -> None:
    await hooks.subscribe(URL, "job.*")
    await rows.insert(hooks.context.database, endpoint)
    await changed(hooks.context, endpoint.id, phase="failed")
    assert await told(hooks) == []


View = Callable[[], Awaitable[dict[str, Any]]]


def view_of(asked: list[str]) -> View:
    async def view() -> dict[str, Any]:
        asked.append("view")
        return {"state": "seen"}

    return view


async def test_an_execution_is_told_to_its_own_address_and_to_webhooks(hooks: Hooks) -> None:
    await hooks.subscribe(URL, "execution.completed")
    execution_id, asked = uuid4(), list[str]()

    def change(status: str, url: str) -> ExecutionChange:
        return ExecutionChange(execution_id, hooks.project_id, status, url, view_of(asked))

    for status in ("PENDING", "RUNNING", "COMPLETED"):
        async with hooks.context.database.transaction() as session:
            await announce_execution(hooks.context, session, change(status, "https://me.example/x"))
    found = [(one.event, one.url, one.next_at is None) for one in await hooks.messages()]
    assert sorted(found, key=str) == [
        ("execution.completed", "https://me.example/x", True),
        ("execution.completed", None, False),
        ("execution.running", "https://me.example/x", False),
    ]
    assert asked == ["view", "view"]


async def test_an_execution_that_nobody_asks_about_is_not_even_looked_at(hooks: Hooks) -> None:
    asked = list[str]()
    async with hooks.context.database.transaction() as session:
        change = ExecutionChange(uuid4(), hooks.project_id, "FAILED", None, view_of(asked))
        await announce_execution(hooks.context, session, change)
    assert asked == []
    assert await hooks.messages() == []


async def test_nothing_is_told_of_a_project_that_is_gone(hooks: Hooks) -> None:
    async with hooks.context.database.transaction() as session:
        change = ExecutionChange(uuid4(), uuid4(), "FAILED", URL, view_of([]))
        with pytest.raises(IntegrityError):
            await announce_execution(hooks.context, session, change)
        await session.rollback()

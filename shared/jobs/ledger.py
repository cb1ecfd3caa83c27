"""The ledger: the truth about every job. Each change of a job's state goes through `transition`, which also writes the event.

The attempts of steps are in `shared.jobs.attempts`; an engine (`shared.jobs.engine`) only drives what this records.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from opentelemetry.trace import SpanKind
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from shared.db.engine import Database
from shared.errors import Problem
from shared.jobs import views
from shared.jobs.declare import JobDef, StepDef
from shared.jobs.hub import CANCEL, WORK, Hub, end_name, signal_name
from shared.jobs.run import PlannedStep
from shared.jobs.stored import json_text
from shared.telemetry import traces
from shared.telemetry.metrics import JOBS_ENDED

REVOKED = "access_revoked"  # the error of a job whose key or membership was lost while it waited
PASSED_OVER = "passed_over"  # of the error of a step without which the job has gone on
FINAL = frozenset({"succeeded", "failed", "cancelled", "cleanup_required"})


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job to be made. `topic` is the workflow whose events it joins, `key_id` the key that asks for it."""

    definition: JobDef
    input: Any
    project_id: UUID | None = None
    owner_id: UUID | None = None
    key_id: UUID | None = None
    topic: UUID | None = None
    resource_type: str | None = None
    resource_id: UUID | None = None
    finished: Any = None  # the result of a job that has nothing left to do
    steps: Sequence[PlannedStep] = ()  # announced when it is made, after those that its definition lists
    id: UUID = field(default_factory=uuid4)


JobView = dict[str, Any]
# Called inside the transaction of every change of a job's state, with the job as readers see it and its input: what
# the change means for the rows of the service that made the job.
Hook = Callable[[AsyncSession, JobView, dict[str, Any]], Awaitable[None]]


class StaleFence(Exception):
    """The run belongs to another process now; what this one reports is refused."""

    outcome = "stale_fence"


_EMIT = text("""
    WITH job AS (UPDATE jobs.job SET event_seq = event_seq + 1 WHERE id = :job RETURNING id, event_seq, topic, input),
         topic AS (UPDATE jobs.topic t SET seq = t.seq + 1 FROM job WHERE t.id = job.topic RETURNING t.seq),
         event AS (INSERT INTO jobs.event (job_id, seq, topic, topic_seq, type, data)
                   SELECT job.id, job.event_seq, job.topic, (SELECT seq FROM topic), 'job', CAST(:data AS jsonb) FROM job)
    SELECT input FROM job
""")

_EMIT_TOPIC = text("""
    WITH topic AS (INSERT INTO jobs.topic (id, seq) VALUES (:topic, 1)
                   ON CONFLICT (id) DO UPDATE SET seq = jobs.topic.seq + 1 RETURNING seq)
    INSERT INTO jobs.event (topic, topic_seq, type, data) SELECT :topic, seq, :type, CAST(:data AS jsonb) FROM topic
""")

_INSERT = text("""
    WITH job AS (
        INSERT INTO jobs.job (id, kind, version, state, project_id, owner_id, key_id, topic, resource_type, resource_id,
                              input, deadline, traceparent)
        VALUES (:id, :kind, :version, 'pending', :project_id, :owner_id, :key_id, :topic, :resource_type, :resource_id,
                CAST(:input AS jsonb), clock_timestamp() + make_interval(secs => CAST(:deadline AS float8)),
                :traceparent)
        RETURNING id, version, topic),
    run AS (INSERT INTO jobs.run (job_id, number, version) SELECT id, 1, version FROM job),
    topic AS (INSERT INTO jobs.topic (id) SELECT topic FROM job WHERE topic IS NOT NULL ON CONFLICT DO NOTHING)
    INSERT INTO jobs.step (job_id, key, position, title, weight)
    SELECT job.id, s.key, s.position, s.title, s.weight
      FROM job, unnest(CAST(:keys AS text[]), CAST(:titles AS text[]), CAST(:weights AS float8[]))
                WITH ORDINALITY AS s(key, title, weight, position)
""")

# An ended job has no running steps: those that its end cut short are marked so. A cancelled job has no pending ones.
_END_STEPS = """,
    steps AS (UPDATE jobs.step SET state = CASE WHEN step.attempt = 0 THEN 'skipped' ELSE 'cancelled' END, token = NULL,
                     ended_at = CASE WHEN step.attempt > 0 THEN clock_timestamp() END
                FROM job WHERE step.job_id = job.id
                 AND (step.state = 'running' OR (step.state = 'pending' AND job.state = 'cancelled')))"""


async def emit_job(session: AsyncSession, job_id: UUID) -> tuple[JobView, dict[str, Any]]:
    """Write an event that shows the job as it is now. Returns the view and the job's input; `StaleFence` if it is gone."""
    view = await views.load_one(session, job_id)
    if view is None:
        raise StaleFence(str(job_id))
    stored = await session.execute(_EMIT, {"job": job_id, "data": json_text(view)})
    return view, stored.scalar_one()


def _count_after_commit(session: AsyncSession, kind: str, state: str) -> None:
    ended: list[str] = [state]

    def done(committed: Session) -> None:
        if ended and not committed.in_nested_transaction():
            JOBS_ENDED.labels(kind, ended.pop()).inc()

    event.listen(session.sync_session, "after_commit", done)


class Ledger:
    """`hooks` maps a kind of job to what its changes mean elsewhere."""

    def __init__(self, database: Database, hub: Hub, hooks: dict[str, Hook] | None = None) -> None:
        self.database = database
        self.hub = hub
        self.hooks = hooks or {}

    # ---- made, cancelled, retried: by people, in the caller's transaction

    async def submit(self, session: AsyncSession, request: JobRequest) -> JobView:
        """Make a job in the caller's transaction: it exists, and will run, if and only if that is committed."""
        definition = request.definition
        data = json_text(definition.input.dump_python(request.input, mode="json"))
        if len(data.encode()) > definition.max_input:
            raise Problem("validation_failed", f"The job's input is at most {definition.max_input} bytes.")
        steps: list[StepDef | PlannedStep] = [*definition.steps, *request.steps]
        values = {
            "id": request.id, "kind": definition.kind, "version": definition.version, "project_id": request.project_id,
            "owner_id": request.owner_id, "key_id": request.key_id, "topic": request.topic,
            "resource_type": request.resource_type, "resource_id": request.resource_id, "input": data,
            "deadline": definition.deadline,
            "keys": [step.key for step in steps], "titles": [step.title for step in steps],
            "weights": [step.weight for step in steps],
        }  # fmt: skip
        with traces.span(
            f"submit {definition.kind}", root=True, kind=SpanKind.PRODUCER,
            job=request.id, job_kind=definition.kind, workflow=request.topic,
        ):  # fmt: skip
            await session.execute(_INSERT, {**values, "traceparent": traces.traceparent()})
            return await self._announce(session, request.id)

    async def complete(self, session: AsyncSession, request: JobRequest) -> JobView:
        """End a job that was submitted in this transaction with nothing left to do: it succeeds with `request.finished`."""
        await session.execute(
            text("""UPDATE jobs.step SET state = 'succeeded', percent = 100, attempt = 1, started_at = clock_timestamp(),
                           ended_at = clock_timestamp() WHERE job_id = :job"""),
            {"job": request.id},
        )
        result = json_text(request.definition.result.dump_python(request.finished, mode="json"))
        changes = "started_at = clock_timestamp(), result = CAST(:result AS jsonb)"
        return await self.transition(session, request.id, "succeeded", set_=changes, values={"result": result})

    async def cancel(self, session: AsyncSession, job_id: UUID, *, revoked: str | None = None) -> JobView:
        """Ask for a job to end and be undone. Repeating it is harmless; a finished job is refused.

        `revoked` says why nobody may want it any more; it stays in the job's error.
        """
        view = await self._locked(session, job_id)
        if view["state"] in ("cancelling", "cancelled"):
            return view
        if view["state"] in FINAL:
            raise Problem("job_finished", f"The job has already ended: {view['state']}.")
        begun = any(step["state"] != "pending" or step["attempt"] > 0 for step in view["steps"])
        changes, values = "phase = 'undo', cancel_requested_at = now()", {}
        if revoked is not None:
            changes += ", error = CAST(:error AS jsonb)"
            values["error"] = json_text({"code": REVOKED, "message": revoked, "step": None})
        if not begun and view["state"] == "pending":
            return await self.transition(session, job_id, "cancelled", set_=changes, values=values)
        changes += ", run_at = clock_timestamp()"
        self.hub.publish_after_commit(session, CANCEL)
        return await self.transition(session, job_id, "cancelling", set_=changes, values=values)

    async def retry(self, session: AsyncSession, job_id: UUID, *, key_id: UUID | None = None) -> JobView:
        """Run a failed job again from its failed step, or a failed undo from where it stopped. `key_id`: who asks."""
        view = await self._locked(session, job_id)
        asker = {"key": key_id}
        if view["state"] == "cleanup_required":
            return await self.transition(
                session, job_id, "cancelling", values=asker,
                set_="""key_id = coalesce(:key, key_id), attempt = attempt + 1, run_at = clock_timestamp(), worker = NULL,
                        ended_at = NULL""",
            )  # fmt: skip
        if view["state"] != "failed":
            raise Problem("not_retryable", f"Only a failed job can be retried; this one is {view['state']}.")
        await session.execute(
            text("""UPDATE jobs.step SET state = 'pending', tries = 0, token = NULL, run_at = NULL, error = NULL,
                           percent = NULL, message = NULL, ended_at = NULL
                     WHERE job_id = :job AND state IN ('failed', 'cancelled', 'undone', 'running')
                       AND NOT (state = 'failed' AND coalesce(error ? :passed_over, false))"""),
            {"job": job_id, "passed_over": PASSED_OVER},
        )
        changes = """key_id = coalesce(:key, key_id), attempt = attempt + 1, phase = 'forward', error = NULL,
                     cancel_requested_at = NULL, ended_at = NULL,
                     run_at = clock_timestamp(), worker = NULL,
                     deadline = clock_timestamp() + (deadline - (
                         SELECT r.created_at FROM jobs.run r WHERE r.job_id = :job AND r.number = attempt))"""
        return await self.transition(session, job_id, "pending", set_=changes, values=asker)

    async def send_event(self, session: AsyncSession, job_id: UUID, name: str, data: Any) -> None:
        """Give a waiting job the event it waits for; kept until a `wait_event` of that name takes it."""
        view = await self._locked(session, job_id)
        if view["state"] in FINAL:
            raise Problem("job_finished", f"The job has already ended: {view['state']}.")
        await session.execute(
            text("INSERT INTO jobs.signal (job_id, name, data) VALUES (:job, :name, CAST(:data AS jsonb))"),
            {"job": job_id, "name": name, "data": json_text(data)},
        )
        await session.execute(
            text("UPDATE jobs.job SET run_at = clock_timestamp() WHERE id = :job AND state = 'waiting'"),
            {"job": job_id},
        )
        self.hub.publish_after_commit(session, signal_name(job_id), WORK)

    # ---- the one way in which a job's state changes

    async def transition(
        self,
        session: AsyncSession,
        job_id: UUID,
        state: str,
        *,
        fence: int | None = None,
        forward: bool = False,
        set_: str = "",
        values: dict[str, Any] | None = None,
    ) -> JobView:
        """Change the state, write the event, tell the hook. With a `fence`, only for who has the run with it.

        `forward` refuses a job that is to be undone by now. `set_` is constant SQL for further columns, with its
        parameters in `values`. Raises `StaleFence` when refused.
        """
        final = state in FINAL
        changes = f"state = :state{', ' + set_ if set_ else ''}"
        changes += ", ended_at = clock_timestamp(), worker = NULL" if final else ""
        guard = (" AND fence = :fence AND worker IS NOT NULL" if fence is not None else "") + (
            " AND phase = 'forward'" if forward else ""
        )
        statement = text(f"""
            WITH job AS (UPDATE jobs.job SET {changes} WHERE id = :job{guard} RETURNING id, attempt, version, state, error),
            run AS (INSERT INTO jobs.run (job_id, number, version, state, error, ended_at)
                    SELECT id, attempt, version, state, error, {"clock_timestamp()" if final else "NULL"} FROM job
                    ON CONFLICT (job_id, number) DO UPDATE
                       SET state = excluded.state, error = excluded.error, ended_at = excluded.ended_at)
            {_END_STEPS if final else ""}
            SELECT id FROM job""")
        parameters = {"job": job_id, "state": state, "fence": fence, **(values or {})}
        if (await session.execute(statement, parameters)).one_or_none() is None:
            raise StaleFence(str(job_id))
        return await self._announce(session, job_id)

    async def emit_topic(self, session: AsyncSession, topic: UUID, kind: str, data: dict[str, Any]) -> None:
        """Append an event of the topic's own: a workflow changed, or its sequence has ended."""
        await session.execute(_EMIT_TOPIC, {"topic": topic, "type": kind, "data": json_text(data)})
        self.hub.publish_after_commit(session, topic)

    async def _announce(self, session: AsyncSession, job_id: UUID) -> JobView:
        view, stored = await emit_job(session, job_id)
        hook = self.hooks.get(view["kind"])
        if hook is not None:
            await hook(session, view, stored)
        if view["state"] in FINAL:
            _count_after_commit(session, view["kind"], view["state"])
            self.hub.publish_after_commit(session, end_name(job_id))
        wake = WORK if view["state"] in ("pending", "cancelling") else None
        self.hub.publish_after_commit(session, job_id, view["workflow_id"], wake)
        return view

    async def _locked(self, session: AsyncSession, job_id: UUID) -> JobView:
        await session.execute(text("SELECT 1 FROM jobs.job WHERE id = :job FOR UPDATE"), {"job": job_id})
        view = await views.load_one(session, job_id)
        if view is None:
            raise Problem("not_found", "There is no such job.")
        return view

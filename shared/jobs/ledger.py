"""The ledger: the truth about every job. Each change of a job's state goes through `transition`, which also writes the event.

The attempts of steps are in `shared.jobs.attempts`; an engine (`shared.jobs.engine`) only drives what this records.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.clock import now
from shared.db.engine import Database
from shared.errors import Problem
from shared.jobs import views
from shared.jobs.declare import MAX_DATA_BYTES, JobDef
from shared.jobs.hub import CANCEL, WORK, Hub, signal_name

FINAL = frozenset({"succeeded", "failed", "cancelled", "cleanup_required"})


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job to be made. `topic` is the workflow whose events it joins."""

    definition: JobDef
    input: Any
    project_id: UUID | None = None
    owner_id: UUID | None = None
    topic: UUID | None = None
    resource_type: str | None = None
    resource_id: UUID | None = None
    finished: Any = None  # the result of a job that has nothing left to do
    id: UUID = field(default_factory=uuid4)


JobView = dict[str, Any]
# Called inside the transaction of every change of a job's state, with the job as readers see it and its input: what
# the change means for the rows of the service that made the job.
Hook = Callable[[AsyncSession, JobView, dict[str, Any]], Awaitable[None]]


class StaleFence(Exception):
    """The run belongs to another process now; what this one reports is refused."""


_EMIT = text("""
    WITH job AS (UPDATE jobs.job SET event_seq = event_seq + 1 WHERE id = :job RETURNING id, event_seq, topic),
         topic AS (UPDATE jobs.topic t SET seq = t.seq + 1 FROM job WHERE t.id = job.topic RETURNING t.seq)
    INSERT INTO jobs.event (job_id, seq, topic, topic_seq, type, data)
    SELECT job.id, job.event_seq, job.topic, (SELECT seq FROM topic), :type, CAST(:data AS jsonb) FROM job
""")

_EMIT_TOPIC = text("""
    WITH topic AS (INSERT INTO jobs.topic (id, seq) VALUES (:topic, 1)
                   ON CONFLICT (id) DO UPDATE SET seq = jobs.topic.seq + 1 RETURNING seq)
    INSERT INTO jobs.event (topic, topic_seq, type, data) SELECT :topic, seq, :type, CAST(:data AS jsonb) FROM topic
""")

_INSERT = text("""
    INSERT INTO jobs.job (id, kind, version, state, project_id, owner_id, topic, resource_type, resource_id, input, deadline)
    VALUES (:id, :kind, :version, 'pending', :project_id, :owner_id, :topic, :resource_type, :resource_id,
            CAST(:input AS jsonb), :deadline)
""")

_INSERT_STEPS = text("""
    INSERT INTO jobs.step (job_id, key, position, title, weight)
    SELECT :job, key, position, title, weight
      FROM unnest(CAST(:keys AS text[]), CAST(:titles AS text[]), CAST(:weights AS float8[]))
           WITH ORDINALITY AS s(key, title, weight, position)
""")


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
        data = to_json(definition.input.dump_python(request.input, mode="json"))
        if len(data) > MAX_DATA_BYTES:
            raise Problem("validation_failed", f"A job's input is at most {MAX_DATA_BYTES} bytes.")
        deadline = now() + timedelta(seconds=definition.deadline) if definition.deadline else None
        values = {
            "id": request.id, "kind": definition.kind, "version": definition.version, "project_id": request.project_id,
            "owner_id": request.owner_id, "topic": request.topic, "resource_type": request.resource_type,
            "resource_id": request.resource_id, "input": data.decode(), "deadline": deadline,
        }  # fmt: skip
        await session.execute(_INSERT, values)
        await session.execute(
            text("INSERT INTO jobs.run (job_id, number, version) VALUES (:id, 1, :version)"),
            {"id": request.id, "version": definition.version},
        )
        if request.topic is not None:
            await session.execute(
                text("INSERT INTO jobs.topic (id) VALUES (:id) ON CONFLICT DO NOTHING"), {"id": request.topic}
            )
        if definition.steps:
            steps = {
                "keys": [step.key for step in definition.steps],
                "titles": [step.title for step in definition.steps],
                "weights": [step.weight for step in definition.steps],
            }
            await session.execute(_INSERT_STEPS, {"job": request.id, **steps})
        return await self._announce(session, request.id)

    async def complete(self, session: AsyncSession, request: JobRequest) -> JobView:
        """End a job that was submitted in this transaction with nothing left to do: it succeeds with `request.finished`."""
        await session.execute(
            text("""UPDATE jobs.step SET state = 'succeeded', percent = 100, attempt = 1, started_at = clock_timestamp(),
                           ended_at = clock_timestamp() WHERE job_id = :job"""),
            {"job": request.id},
        )
        result = to_json(request.definition.result.dump_python(request.finished, mode="json")).decode()
        changes = "started_at = clock_timestamp(), result = CAST(:result AS jsonb)"
        return await self.transition(session, request.id, "succeeded", set_=changes, values={"result": result})

    async def cancel(self, session: AsyncSession, job_id: UUID) -> JobView:
        """Ask for a job to end and be undone. Repeating it is harmless; a finished job is refused."""
        view = await self._locked(session, job_id)
        if view["state"] in ("cancelling", "cancelled"):
            return view
        if view["state"] in FINAL:
            raise Problem("job_finished", f"The job has already ended: {view['state']}.")
        begun = any(step["state"] != "pending" for step in view["steps"])
        if not begun and view["state"] == "pending":
            return await self.transition(
                session, job_id, "cancelled", set_="phase = 'undo', cancel_requested_at = now()"
            )
        changes = "phase = 'undo', cancel_requested_at = now(), run_at = clock_timestamp()"
        self.hub.publish_after_commit(session, CANCEL)
        return await self.transition(session, job_id, "cancelling", set_=changes)

    async def retry(self, session: AsyncSession, job_id: UUID) -> JobView:
        """Run a failed job again from its failed step, or a failed undo from where it stopped."""
        view = await self._locked(session, job_id)
        if view["state"] == "cleanup_required":
            return await self.transition(
                session, job_id, "cancelling",
                set_="attempt = attempt + 1, run_at = clock_timestamp(), worker = NULL, ended_at = NULL",
            )  # fmt: skip
        if view["state"] != "failed":
            raise Problem("not_retryable", f"Only a failed job can be retried; this one is {view['state']}.")
        await session.execute(
            text("""UPDATE jobs.step SET state = 'pending', tries = 0, run_at = NULL, error = NULL, percent = NULL,
                           message = NULL, ended_at = NULL
                     WHERE job_id = :job AND state IN ('failed', 'cancelled', 'undone', 'running')"""),
            {"job": job_id},
        )
        changes = """attempt = attempt + 1, phase = 'forward', error = NULL, cancel_requested_at = NULL, ended_at = NULL,
                     run_at = clock_timestamp(), worker = NULL,
                     deadline = deadline + (clock_timestamp() - coalesce(started_at, created_at))"""
        return await self.transition(session, job_id, "pending", set_=changes)

    async def send_event(self, session: AsyncSession, job_id: UUID, name: str, data: Any) -> None:
        """Give a waiting job the event it waits for; kept until a `wait_event` of that name takes it."""
        view = await self._locked(session, job_id)
        if view["state"] in FINAL:
            raise Problem("job_finished", f"The job has already ended: {view['state']}.")
        await session.execute(
            text("INSERT INTO jobs.signal (job_id, name, data) VALUES (:job, :name, CAST(:data AS jsonb))"),
            {"job": job_id, "name": name, "data": to_json(data).decode()},
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
        set_: str = "",
        values: dict[str, Any] | None = None,
    ) -> JobView:
        """Change the state, write the event, tell the hook. With a `fence`, only for the process that holds it.

        `set_` is constant SQL for further columns, with its parameters in `values`.
        """
        ending = ", ended_at = clock_timestamp(), worker = NULL" if state in FINAL else ""
        sql = f"UPDATE jobs.job SET state = :state{', ' + set_ if set_ else ''}{ending} WHERE id = :job"
        parameters = {"job": job_id, "state": state, **(values or {})}
        if fence is not None:
            sql += " AND fence = :fence"
            parameters["fence"] = fence
        changed = await session.execute(text(sql + " RETURNING attempt, version, error"), parameters)
        row = changed.one_or_none()
        if row is None:
            raise StaleFence(str(job_id))
        await session.execute(
            text("""INSERT INTO jobs.run (job_id, number, version, state, error, ended_at)
                    VALUES (:job, :number, :version, :state, CAST(:error AS jsonb),
                            CASE WHEN :final THEN clock_timestamp() END)
                    ON CONFLICT (job_id, number) DO UPDATE
                       SET state = excluded.state, error = excluded.error, ended_at = excluded.ended_at"""),
            {"job": job_id, "number": row.attempt, "version": row.version, "state": state,
             "error": to_json(row.error).decode() if row.error else None, "final": state in FINAL},
        )  # fmt: skip
        return await self._announce(session, job_id)

    async def emit_topic(self, session: AsyncSession, topic: UUID, kind: str, data: dict[str, Any]) -> None:
        """Append an event of the topic's own: a workflow changed, or its sequence has ended."""
        await session.execute(_EMIT_TOPIC, {"topic": topic, "type": kind, "data": to_json(data).decode()})
        self.hub.publish_after_commit(session, topic)

    async def _announce(self, session: AsyncSession, job_id: UUID) -> JobView:
        view = await views.load_one(session, job_id)
        if view is None:
            raise StaleFence(str(job_id))
        await session.execute(_EMIT, {"job": job_id, "type": "job", "data": to_json(view).decode()})
        hook = self.hooks.get(view["kind"])
        if hook is not None:
            stored = await session.execute(text("SELECT input FROM jobs.job WHERE id = :job"), {"job": job_id})
            await hook(session, view, stored.scalar_one())
        self.hub.publish_after_commit(session, job_id, view["workflow_id"], WORK)
        return view

    async def _locked(self, session: AsyncSession, job_id: UUID) -> JobView:
        await session.execute(text("SELECT 1 FROM jobs.job WHERE id = :job FOR UPDATE"), {"job": job_id})
        view = await views.load_one(session, job_id)
        if view is None:
            raise Problem("not_found", "There is no such job.")
        return view

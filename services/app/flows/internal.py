"""What the app answers the jobs of executions (`shared.contracts.flows.FlowPort`): each call is checked against its job."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext
from services.app.flows import definitions, endpoint_access, history, repository, slugs, starting
from services.app.flows.progress import OF_JOB
from services.app.flows.starting import Parent, Start
from services.app.flows.tables import ExecutionRow, FlowRow, SecretRow, VersionRow
from services.app.models import holdings
from shared.contracts.flows import (
    MAX_DEPTH,
    RUN_FLOW,
    ArtifactInfo,
    ChildEnd,
    ChildStarted,
    EndpointAccess,
    child_event,
)
from shared.errors import Problem
from shared.flows.definition import Flow
from shared.jobs import views as job_views
from shared.jobs.ledger import FINAL, PASSED_OVER
from shared.jobs.outcomes import Permanent, Retry
from shared.objects.store import InvalidKey, blob_key
from shared.rpc.server import caller

log = structlog.get_logger(__name__)

MAX_NAME = 255  # characters of a file's name

_JOB = text("""
    SELECT j.id, j.owner_id, j.key_id, j.attempt, e.project_id
      FROM jobs.job j JOIN flow.execution e ON e.id = j.id
     WHERE j.id = :id AND j.kind = :kind AND j.state IN ('running', 'cancelling')""")

_DEPTH = text("""
    WITH RECURSIVE above AS (
        SELECT id, parent, 1 AS depth FROM flow.execution WHERE id = :id
        UNION ALL SELECT e.id, e.parent, above.depth + 1 FROM flow.execution e JOIN above ON e.id = above.parent
                   WHERE above.depth <= :most)
    SELECT max(depth) FROM above""")


_PASSED_OVER = text("""
    SELECT error FROM jobs.step
     WHERE job_id = :job AND (key = :task OR starts_with(key, :start)) AND state = 'failed' AND error ? :passed_over
     LIMIT 1""")

# Of an end that nobody has waited for: the parent failed elsewhere meanwhile.
_FORGET_END = text("DELETE FROM jobs.signal WHERE job_id = :job AND name = :name AND taken_by IS NULL")


class FlowAccess:
    """`services` says which service a kind of job is of, where they are processes of their own."""

    def __init__(self, context: AppContext, services: Mapping[str, str] | None = None) -> None:
        self._context = context
        self._services = services or {}

    async def provider_key(self, job_id: UUID) -> str | None:
        async with self._context.database.transaction() as session:
            await self._check_job(session, job_id)
            return await self._secret(session, job_id)

    async def keep_artifact(self, job_id: UUID, task: str, name: str, media_type: str, size: int, sha256: str) -> UUID:
        key = _blob(sha256)
        values = {
            "execution_id": job_id, "task": task, "name": name[:MAX_NAME], "media_type": media_type[:MAX_NAME],
            "size": size, "sha256": sha256,
        }  # fmt: skip
        async with self._context.database.transaction() as session:
            await self._check_job(session, job_id)
            await holdings.lock(session, [key])
            artifact_id = await history.keep_artifact(session, values)
        # Named first, then looked at: from here on nothing frees it (see `holdings`).
        if not await self._context.objects.exists(key):
            raise Retry("artifact_gone", "The bytes of the file are not there; they are stored again.")
        return artifact_id

    async def artifact(self, job_id: UUID, artifact_id: UUID) -> ArtifactInfo:
        async with self._context.database.transaction() as session:
            job = await self._check_job(session, job_id)
            row = await history.artifact(session, artifact_id, job.project_id)
        if row is None:
            raise Permanent("artifact_gone", "There is no such file in the project, or not any more.")
        return ArtifactInfo(id=row.id, name=row.name, media_type=row.media_type, size=row.size, sha256=row.sha256)

    # ---- sub-flows

    async def start_child(
        self, job_id: UUID, task: str, workflow_id: str, version: int | None, inputs: dict[str, Any]
    ) -> ChildStarted:
        try:
            async with self._context.database.transaction() as session:
                job = await self._check_job(session, job_id)
                await _check_not_passed_over(session, job_id, task)
                known = await history.child(session, job_id, task)
                if known is not None and (taken := await self._taken_up(session, job, known, task)) is not None:
                    return taken
                return await self._started(session, job, task, workflow_id, version, inputs)
        except Problem as problem:
            raise _fault_of(problem) from problem
        except IntegrityError as error:
            raise Retry("child_busy", "The sub-flow is being started by another process.") from error

    async def endpoint(self, job_id: UUID, endpoint: str) -> EndpointAccess:
        async with self._context.database.transaction() as session:
            job = await self._check_job(session, job_id)
            return await endpoint_access.access(self._context, session, job, endpoint)

    async def child_end(self, job_id: UUID, task: str) -> ChildEnd:
        async with self._context.database.transaction() as session:
            await self._check_job(session, job_id)
            child = await history.child(session, job_id, task)
            job = await job_views.load_one(session, child.id) if child is not None else None
            outputs = await history.outputs(session, child.id) if child is not None else {}
        if child is None or job is None:
            raise Permanent("child_gone", "The sub-flow's execution is not there any more.")
        return ChildEnd.model_validate(
            {"execution_id": child.slug, "status": OF_JOB[job["state"]], "outputs": outputs, "error": job["error"]}
        )

    async def cancel_child(self, job_id: UUID, task: str) -> None:
        async with self._context.database.transaction() as session:
            await self._check_job(session, job_id)
            child = await history.child(session, job_id, task)
            job = await job_views.load_one(session, child.id) if child is not None else None
            if child is not None and job is not None and job["state"] not in FINAL:
                await self._cancel(session, child.id)

    async def _cancel(self, session: AsyncSession, child_id: UUID) -> None:
        try:
            await self._context.ledger.cancel(session, child_id)
        except Problem as problem:  # it has ended meanwhile
            log.info("child_not_cancelled", child=str(child_id), code=problem.code)

    async def _taken_up(self, session: AsyncSession, job: Any, child: ExecutionRow, task: str) -> ChildStarted | None:
        """The child as it is, or run again when the parent's job is. None: another one must be started in its place.

        Under the lock of its job: what cancels the children of a parent that has ended (`orphans`) sees it taken up, or is
        seen here.
        """
        state = await session.scalar(text("SELECT state FROM jobs.job WHERE id = :id FOR UPDATE"), {"id": child.id})
        is_new_attempt = (child.parent_attempt or 0) < job.attempt
        if state in ("cancelling", "cancelled") and is_new_attempt:
            await session.execute(
                update(ExecutionRow).where(ExecutionRow.id == child.id).values(parent=None, parent_task=None)
            )
            await session.execute(_FORGET_END, {"job": job.id, "name": child_event(task)})
            return None
        if is_new_attempt:
            await session.execute(
                update(ExecutionRow).where(ExecutionRow.id == child.id).values(parent_attempt=job.attempt)
            )
        if state not in ("failed", "cleanup_required") or not is_new_attempt:
            return ChildStarted(execution_id=child.id, live=state not in FINAL)
        await starting.check_room(self._context, session, job.project_id)
        await self._context.ledger.retry(session, child.id, key_id=job.key_id)
        await session.execute(_FORGET_END, {"job": job.id, "name": child_event(task)})
        if (key := await self._secret(session, job.id)) is not None:
            await starting.keep_secret(self._context, session, child.id, key)
        return ChildStarted(execution_id=child.id, live=True)

    async def _started(
        self, session: AsyncSession, job: Any, task: str, workflow_id: str, version: int | None, inputs: dict[str, Any]
    ) -> ChildStarted:
        if int(await session.scalar(_DEPTH, {"id": job.id, "most": MAX_DEPTH}) or 0) >= MAX_DEPTH:
            raise Permanent("flow_too_deep", f"Flows run within each other {MAX_DEPTH} levels deep at most.")
        flow, chosen = await self._flow(session, job, workflow_id, version)
        # Whether its owner may use them is looked at when they are used, as they were not asked for by a request.
        definition = Flow.model_validate(chosen.definition)
        credentials = list(definitions.credentials_of(definition, inputs, "refs"))
        execution = await starting.start(self._context, session, Start(
            flow, chosen, definition, inputs, "refs", "parent", job.owner_id, job.key_id, credentials,
            provider_key=await self._secret(session, job.id), parent=Parent(job.id, task, job.attempt),
        ))  # fmt: skip
        return ChildStarted(execution_id=execution.id, live=True)

    async def _flow(
        self, session: AsyncSession, job: Any, workflow_id: str, version: int | None
    ) -> tuple[FlowRow, VersionRow]:
        name = slugs.flow(workflow_id)
        flow = await repository.get(session, name) if name is not None else None
        if flow is None or flow.deleted_at is not None or flow.project_id != job.project_id:
            raise Permanent("flow_gone", "There is no such workflow in the project, or not any more.")
        chosen = await repository.version(session, flow.id, flow.version if version is None else version)
        if chosen is None:
            raise Permanent("flow_gone", f"The workflow {flow.slug} has no version {version}.")
        return flow, chosen

    # ---- whose business it is

    async def _secret(self, session: AsyncSession, execution_id: UUID) -> str | None:
        row = await session.get(SecretRow, execution_id, populate_existing=True)
        if row is None:
            return None
        return self._context.keyring.open(row.sealed, starting.secret_context(execution_id)).decode()

    async def _check_job(self, session: AsyncSession, job_id: UUID) -> Any:
        """An execution's living job, of the service that asks."""
        row = (await session.execute(_JOB, {"id": job_id, "kind": RUN_FLOW})).one_or_none()
        if row is None:
            log.warning("internal_call_refused", job=str(job_id))
            raise Permanent("not_this_jobs_business", "There is no such execution that runs.")
        if (service := caller.get()) is not None and self._services.get(RUN_FLOW) != service:
            log.warning("internal_call_refused", job=str(job_id), service=service)
            raise Permanent("not_your_job", "The job is another service's.")
        return row


async def _check_not_passed_over(session: AsyncSession, job_id: UUID, task: str) -> None:
    """An execution that has gone on without a sub-flow does so when it is run again: others have run since."""
    values = {"job": job_id, "task": task, "start": f"{task}:start", "passed_over": PASSED_OVER}
    error = await session.scalar(_PASSED_OVER, values)
    if error is not None:
        raise Permanent(error["code"], error["message"])


def _blob(sha256: str) -> str:
    try:
        return blob_key(sha256)
    except InvalidKey as error:
        raise Permanent("not_this_jobs_business", "That is no digest of a file.") from error


def _fault_of(problem: Problem) -> Retry | Permanent:
    """What the parent's task is told; the faults of inputs all in one sentence."""
    if problem.code == "too_many_executions":
        return Retry(problem.code, problem.detail, after=5)
    told = "; ".join(f"{fault.param or 'the inputs'}: {fault.message}" for fault in problem.faults[:5])
    return Permanent(problem.code, told or problem.detail)

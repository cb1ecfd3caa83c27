"""Workflow servers register here and tell of their runs; people look at these, and ask for runs to be cancelled.

The platform never calls a server: what is asked of it is in the answers to its reports. A report may come twice, late, or
from one of several servers over one store; each run keeps the newest of what was told.
"""

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.audit import service as audit
from services.app.context import AppContext
from services.app.flows.service import home_of
from services.app.identity.caller import Caller
from services.app.projects import repository as projects
from services.app.resources import check_project, listed, save
from services.app.workflow_servers import repository
from services.app.workflow_servers.repository import Filters, Found
from services.app.workflow_servers.schemas import MOST_CHANGES, ReportIn, ServerIn, run_view, server_view
from services.app.workflow_servers.tables import WorkflowServerRow
from shared.clock import now
from shared.errors import Problem
from shared.http.pages import PageQuery

REPORT_EVERY = 2.0  # seconds between two reports; the time that a cancel may take to arrive
ASK_AFTER = 60.0  # seconds without news of a run that goes on
QUESTIONS, COMMANDS = 200, 100  # in one answer


# ---- what servers ask


async def register(
    session: AsyncSession, context: AppContext, caller: Caller, body: ServerIn
) -> tuple[dict[str, Any], bool]:
    """The server's view with what it needs to report, and whether it is new. The same name and instance are the same server.

    Problems: `quota_exceeded`, those of `home_of`.
    """
    caller.require("member")
    home = await home_of(session, caller, body.project_id)
    # The lock makes simultaneous registrations of one project wait for each other.
    if await projects.get(session, home, lock=True) is None:
        raise Problem("reference_not_found", "There is no such project any more.", param="project_id")
    server = await repository.of_instance(session, home, body.name, body.instance)
    is_new = server is None
    if server is None:
        await _make_room(session, context, caller, home)
        server = WorkflowServerRow(id=uuid4(), project_id=home, name=body.name, instance=body.instance, revision=1)
        session.add(server)
    else:
        server.revision += 1
        if server.process != body.process:  # what an earlier process had in memory is gone
            await repository.lose(session, server.id)
            server.position = None
        await repository.doubt(session, server.id)
    server.process, server.url, server.version = body.process, body.url, body.version
    server.workflows = [one.model_dump() for one in body.workflows]
    server.owner_id, server.key_id, server.stopped_at = caller.user_id, caller.key_id, None
    server.updated_at = server.seen_at = server.online_since = func.clock_timestamp()
    await save(session)
    await session.refresh(server)
    await audit.record(
        session, caller, "workflow_server.register", "workflow_server", server.id, project_id=home, name=server.name,
        new=is_new, workflows=[one.name for one in body.workflows],
    )  # fmt: skip
    return {**server_view(server), **_terms(context, server)}, is_new


async def _make_room(session: AsyncSession, context: AppContext, caller: Caller, project_id: UUID) -> None:
    """Servers that kept their runs in memory and are gone make room for new ones."""
    most = context.settings.workflow_servers_per_project
    if await repository.count(session, project_id) < most:
        return
    gone = await repository.longest_gone(session, project_id)
    if gone is None:
        raise Problem("quota_exceeded", f"A project may have {most} workflow servers; forget some first.")
    await repository.forget(session, gone)
    await _record(session, caller, "workflow_server.forget", gone)


def _terms(context: AppContext, server: WorkflowServerRow) -> dict[str, Any]:
    """How a server is to report: from where on, how often, and how many of its newest runs are kept at all."""
    return {
        "position": server.position,
        "report_every": REPORT_EVERY,
        "most_changes": MOST_CHANGES,
        "runs_kept": context.settings.workflow_runs_kept,
    }


async def report(
    session: AsyncSession, context: AppContext, caller: Caller, server_id: UUID, body: ReportIn
) -> dict[str, Any]:
    """Take what a server tells of its runs; what is asked of it in turn.

    Problems: `not_found` for one that was forgotten and `conflict` for a process whose place another has taken, which both
    have to register anew; `not_owner` for whoever has not registered it.
    """
    server = await _found(session, caller, server_id, lock=True)
    caller.check_works_in(server.project_id, "workflow server")
    if server.owner_id != caller.user_id:
        raise Problem("not_owner", "Another user has registered this server.")
    if server.process != body.process:
        raise Problem("conflict", "Another process has registered in place of this one.")
    _seen(server, stopping=body.stopping)
    if body.position is not None and server.position == body.after:
        server.position = body.position
    await _changed(session, context, caller, server, body)
    if body.gone:
        await repository.lose(session, server.id, body.gone)
    if body.stopping and server.process is not None:
        await repository.lose(session, server.id)
    if body.taken:
        await repository.take(session, server.id, body.taken)
    await save(session)
    return {"object": "workflow_server_report", **_terms(context, server), **await _asked(session, server, body)}


def _seen(server: WorkflowServerRow, *, stopping: bool) -> None:
    if server.state != "online":
        server.online_since = func.clock_timestamp()
    server.seen_at = func.clock_timestamp()
    server.stopped_at = func.clock_timestamp() if stopping else None


async def _changed(
    session: AsyncSession, context: AppContext, caller: Caller, server: WorkflowServerRow, body: ReportIn
) -> None:
    if not body.changes:
        return
    rows = await repository.change(session, server, [one.model_dump(mode="json") for one in body.changes])
    new = [row for row in rows if row.is_new]
    if new:
        await repository.trim(session, server.id, context.settings.workflow_runs_kept)
    # The actor is the server, which says on whose behalf.
    entries = [
        (row.id, {"workflow": row.workflow, "on_behalf_of": row.started_by, "on_behalf_key_id": row.started_key_id})
        for row in new
        if row.started_by is not None
    ]
    await audit.record_all(session, caller, "workflow_run.start", "workflow_run", entries, project_id=server.project_id)


async def _asked(session: AsyncSession, server: WorkflowServerRow, body: ReportIn) -> dict[str, Any]:
    if body.stopping:
        return {"commands": [], "questions": []}
    commands = await repository.to_cancel(session, server.id, COMMANDS)
    questions = await repository.unconfirmed(session, server.id, ASK_AFTER, QUESTIONS)
    return {
        "commands": [
            {"id": str(one.id), "kind": "cancel", "handler_id": one.handler_id, "run_id": one.run_id}
            for one in commands
        ],
        "questions": [{"handler_id": one.handler_id, "run_id": one.run_id} for one in questions],
    }


# ---- what people ask


async def _found(session: AsyncSession, caller: Caller, server_id: UUID, *, lock: bool = False) -> WorkflowServerRow:
    server = await repository.get(session, server_id, lock=lock)
    if server is None:
        raise Problem("not_found", "There is no such workflow server.")
    caller.check_sees(server.project_id, "workflow server")
    return server


async def page(
    session: AsyncSession,
    caller: Caller,
    project_id: UUID | None,
    state: str | None,
    name: str | None,
    query: PageQuery,
) -> dict[str, Any]:
    await check_project(session, caller, project_id)
    return (await repository.page(session, caller, project_id, state, name, query)).envelope(server_view)


async def show(session: AsyncSession, caller: Caller, server_id: UUID) -> dict[str, Any]:
    return server_view(await _found(session, caller, server_id))


async def workflows(session: AsyncSession, caller: Caller, server_id: UUID, query: PageQuery) -> dict[str, Any]:
    """What it serves; `id` is the name, too."""
    server = await _found(session, caller, server_id)
    shown = [{"object": "served_workflow", "id": one["name"], **one} for one in server.workflows]
    return listed(shown, query, "name")


async def forget(session: AsyncSession, caller: Caller, server_id: UUID) -> None:
    """With its runs. One that still reports registers again."""
    server = await _found(session, caller, server_id, lock=True)
    caller.check_works_in(server.project_id, "workflow server")
    await repository.forget(session, server)
    await _record(session, caller, "workflow_server.forget", server)


async def runs(session: AsyncSession, caller: Caller, filters: Filters, query: PageQuery) -> dict[str, Any]:
    await check_project(session, caller, filters.project_id)
    if filters.server_id is not None:
        await _found(session, caller, filters.server_id)
    return (await repository.runs(session, caller, filters, query)).envelope(lambda row: run_view(*row))


async def show_run(session: AsyncSession, caller: Caller, run_id: UUID) -> dict[str, Any]:
    return run_view(*await _run(session, caller, run_id))


async def cancel(session: AsyncSession, caller: Caller, run_id: UUID) -> dict[str, Any]:
    """Ask the run's server to cancel it, at its next report; once more if it was asked before. Problem `run_ended`."""
    run, name, state = await _run(session, caller, run_id, lock=True)
    caller.check_works_in(run.project_id, "workflow run")
    if run.status != "running":
        raise Problem("run_ended", f"The run is {run.status}.")
    run.cancel_asked_at, run.cancel_asked_by, run.cancel_taken_at = now(), caller.user_id, None
    await save(session)
    await audit.record(
        session, caller, "workflow_run.cancel", "workflow_run", run.id, project_id=run.project_id, workflow=run.workflow,
        handler_id=run.handler_id,
    )  # fmt: skip
    return run_view(run, name, state)


async def _run(session: AsyncSession, caller: Caller, run_id: UUID, *, lock: bool = False) -> Found:
    found = await repository.run(session, run_id, lock=lock)
    if found is None:
        raise Problem("not_found", "There is no such workflow run.")
    caller.check_sees(found[0].project_id, "workflow run")
    return found


async def _record(session: AsyncSession, caller: Caller, action: str, server: WorkflowServerRow) -> None:
    await audit.record(
        session, caller, action, "workflow_server", server.id, project_id=server.project_id, name=server.name
    )

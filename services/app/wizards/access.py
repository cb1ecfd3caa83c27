"""Who may read and change a workflow: its owner; operators read all, admins change all."""

from sqlalchemy import ColumnElement, and_, or_, true

from services.app.identity.caller import Caller
from services.app.wizards.tables import WorkflowRow
from shared.errors import Problem


def check_may_read(caller: Caller, workflow: WorkflowRow, *, param: str | None = None) -> None:
    """`not_found`, as for what is not there: what belongs to someone else, or to a project that they do not see."""
    if not _may_read(caller, workflow):
        raise Problem("not_found", "There is no such workflow.", param=param)


def _may_read(caller: Caller, workflow: WorkflowRow) -> bool:
    """A key that is bound to a project reaches nothing of another. Its owner reads a draft in any case, to mend it;
    a job that was started is of its project, whoever started it."""
    own, project_id, bound_to = workflow.owner_id == caller.user_id, workflow.project_id, caller.only_project
    if not own and not (caller.is_at_least("operator") and bound_to in (None, project_id)):
        return False
    if workflow.job_id is None:
        return project_id is None or bound_to in (None, project_id)
    return bound_to is None if project_id is None else caller.sees(project_id)


def readable(caller: Caller) -> ColumnElement[bool]:
    """`check_may_read` in SQL."""
    own, project_id, bound_to = WorkflowRow.owner_id == caller.user_id, WorkflowRow.project_id, caller.only_project
    if bound_to is None:
        theirs = true() if caller.is_at_least("operator") else own
        return and_(theirs, or_(WorkflowRow.job_id.is_(None), caller.visible(project_id)))
    theirs = or_(own, project_id == bound_to) if caller.is_at_least("operator") else own
    unplaced_draft = and_(project_id.is_(None), WorkflowRow.job_id.is_(None))
    draft = and_(project_id == bound_to, WorkflowRow.job_id.is_(None))
    started = and_(project_id.is_not(None), caller.visible(project_id))
    return and_(theirs, or_(unplaced_draft, draft, started))


def check_may_change(caller: Caller, workflow: WorkflowRow, *, param: str | None = None) -> None:
    check_may_read(caller, workflow, param=param)
    if workflow.owner_id != caller.user_id and caller.role != "admin":
        raise Problem("not_owner", "This workflow belongs to someone else.", param=param)

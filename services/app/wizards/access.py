"""Who may read and change a workflow: its owner; operators read all, admins change all."""

from services.app.identity.caller import Caller
from services.app.wizards.tables import WorkflowRow
from shared.errors import Problem


def check_may_read(caller: Caller, workflow: WorkflowRow, *, param: str | None = None) -> None:
    """`not_found`, as for what is not there. A key that is bound to a project does not reach drafts of another."""
    is_theirs = workflow.owner_id == caller.user_id or caller.is_at_least("operator")
    elsewhere = workflow.project_id is not None and caller.only_project not in (None, workflow.project_id)
    if not is_theirs or elsewhere:
        raise Problem("not_found", "There is no such workflow.", param=param)


def check_may_change(caller: Caller, workflow: WorkflowRow, *, param: str | None = None) -> None:
    check_may_read(caller, workflow, param=param)
    if workflow.owner_id != caller.user_id and caller.role != "admin":
        raise Problem("not_owner", "This workflow belongs to someone else.", param=param)

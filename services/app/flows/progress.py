"""How an execution and its tasks stand, in the words of flows, from what the ledger says.

Pure: rows come in, statuses go out. What may be seen of values is `shared.flows.sight`'s to say.
"""

from services.app.flows.history import TaskState

OF_JOB = {
    "pending": "PENDING", "running": "RUNNING", "waiting": "RUNNING", "cancelling": "RUNNING", "succeeded": "COMPLETED",
    "failed": "FAILED", "cleanup_required": "FAILED", "cancelled": "CANCELLED",
}  # fmt: skip


def task_status(state: TaskState | None, execution: str) -> str:
    """The status of a task. `execution`: that of the whole."""
    step, done, begun, failed = state or TaskState(None, None, False)
    ended = execution in ("COMPLETED", "FAILED", "CANCELLED")
    if step == "succeeded":
        return "SKIPPED" if done == "skipped" else "COMPLETED"
    if step == "failed":
        return "FAILED"
    if not ended:
        return "RUNNING" if step == "running" or (begun and step in (None, "pending")) else "PENDING"
    if execution == "CANCELLED":
        return "CANCELLED"
    if failed:
        return "FAILED"
    return "CANCELLED" if step in ("cancelled", "undone") or begun else "SKIPPED"

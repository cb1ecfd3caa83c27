"""The state of an endpoint: one pure function of what the jobs have done, what should be, and what is seen."""

from typing import Any

_FIXED = {
    "deploying": "deploying",
    "failed": "failed",
    "stopped": "stopped",
    "deleting": "deleting",
    "deleted": "deleted",
}


def derive(phase: str, desired: dict[str, Any], observed: dict[str, Any]) -> tuple[str, str | None]:
    """(state, reason). `observed` is an Observation: `{workers: [{state, message, …}], …}`, empty before the first look."""
    if phase in _FIXED:
        return _FIXED[phase], None
    wanted = int(desired.get("replicas", 0))
    workers = observed.get("workers", [])
    ready = sum(worker["state"] == "ready" for worker in workers)
    if wanted == 0:
        return "stopped", None
    if ready == 0:
        return "unavailable", _reason(workers) or "No worker is ready."
    if phase == "updating":
        return "updating", None
    if ready < wanted:
        return "degraded", f"{ready} of {wanted} workers are ready. {_reason(workers) or ''}".strip()
    return "running", None


def _reason(workers: list[dict[str, Any]]) -> str | None:
    """The words of the first worker that has something to say."""
    for worker in workers:
        if worker["state"] != "ready" and worker.get("message"):
            return str(worker["message"])
    return None

"""The state of an endpoint: one pure function of what the jobs have done, what should be, and what is seen."""

from typing import Any

_FIXED = {
    "deploying": "deploying",
    "failed": "failed",
    "stopped": "stopped",
    "deleting": "deleting",
    "deleted": "deleted",
}
_DRIFT = ("removed_by_others", "changed_by_others")


def derive(phase: str, desired: dict[str, Any], observed: dict[str, Any]) -> tuple[str, str | None]:
    """(state, reason). `observed` is an Observation: `{workers: [{state, message, …}], …}`, empty before the first look.

    It has `cluster_fault`, a sentence, while the cluster cannot be looked at; the rest is then what was last seen.
    """
    if phase in _FIXED:
        return _FIXED[phase], None
    wanted = int(desired.get("replicas", 0))
    workers = observed.get("workers", [])
    ready = sum(worker["state"] == "ready" for worker in workers)
    if wanted == 0:
        return "stopped", None
    if fault := observed.get("cluster_fault"):
        return "unavailable", str(fault)
    if ready == 0:
        return "unavailable", _reason(observed) or "No worker is ready."
    if phase == "updating":
        return "updating", None
    if ready < wanted:
        return "degraded", f"{ready} of {wanted} workers are ready. {_reason(observed) or ''}".strip()
    if observed.get("reason") in _DRIFT:
        return "degraded", _reason(observed)
    return "running", None


def _reason(observed: dict[str, Any]) -> str | None:
    """What is wrong with the endpoint as a whole, else the words of the first worker that has something to say."""
    if observed.get("message"):
        return str(observed["message"])
    for worker in observed.get("workers", []):
        if worker["state"] != "ready" and worker.get("message"):
            return str(worker["message"])
    return None

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


def wanted_workers(phase: str, desired: dict[str, Any], observed: dict[str, Any]) -> int:
    """How many workers there should be now: where the cluster itself decides, as many as it wants."""
    if phase in ("stopped", "deleting", "deleted"):
        return 0
    if desired.get("autoscale") and observed.get("replicas"):
        return int(observed["replicas"])
    return int(desired.get("replicas", 0))


def derive(phase: str, desired: dict[str, Any], observed: dict[str, Any]) -> tuple[str, str | None]:
    """(state, reason). `observed` is an Observation: `{workers: [{state, message, …}], …}`, empty before the first look.

    It has `cluster_fault`, a sentence, while the cluster cannot be looked at; the rest is then what was last seen.
    """
    if phase in _FIXED:
        return _FIXED[phase], None
    wanted = wanted_workers(phase, desired, observed)
    workers = observed.get("workers", [])
    ready = sum(worker["state"] == "ready" for worker in workers)
    if wanted == 0:
        return "stopped", None
    if fault := observed.get("cluster_fault"):
        return "unavailable", str(fault)
    why = _reason(observed) or "No worker is ready."
    if phase == "updating":
        return "updating", None if ready else why
    if ready == 0:
        return "unavailable", why
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

"""How refusals travel between services: each as its kind, its code and its sentence, and is raised again over there.

What is not listed here is a fault of ours: it stays in the log of the service that met it, and its caller is told
nothing but that.
"""

from collections.abc import Callable
from typing import Any

from shared.errors import Problem
from shared.jobs.attempts import CancelRequested
from shared.jobs.ledger import StaleFence
from shared.jobs.outcomes import Permanent, Retry

Fault = dict[str, Any]

REFUSED = 409  # the status of an answer that holds a fault

_RAISES: dict[str, Callable[[Fault], BaseException]] = {
    "permanent": lambda fault: Permanent(fault["code"], fault["message"]),
    "retry": lambda fault: Retry(fault["code"], fault["message"], after=fault.get("after")),
    "problem": lambda fault: Problem(fault["code"], fault["message"]),
    "stale": lambda fault: StaleFence(fault["message"]),
    "cancelled": lambda fault: CancelRequested(fault["message"]),
}


def packed(error: BaseException) -> Fault | None:
    """None: not one that may travel."""
    match error:
        case Permanent():
            return {"kind": "permanent", "code": error.code, "message": error.message}
        case Retry():
            return {"kind": "retry", "code": error.code, "message": error.message, "after": error.after}
        case Problem():
            return {"kind": "problem", "code": error.code, "message": error.detail}
        case StaleFence():
            return {"kind": "stale", "message": str(error)}
        case CancelRequested():
            return {"kind": "cancelled", "message": str(error)}
    return None


def unpacked(fault: Fault) -> BaseException:
    return _RAISES[fault["kind"]](fault)

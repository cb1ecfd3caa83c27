"""What is answered when a request cannot be done: a status and `{"detail": …}`."""

from collections.abc import Sequence

from stepway.runner.api.envelopes import InvalidEvent
from stepway.runner.runs import InvalidContext, UnknownWorkflow
from stepway.runner.store import AlreadyOver, AlreadyRunning, StoreUnavailable, UnknownHandler

Headers = Sequence[tuple[bytes, bytes]]

CLOSE: Headers = ((b"connection", b"close"),)
RETRY_SOON: Headers = ((b"retry-after", b"1"),)


class Refused(Exception):
    """A request that is answered with an error of the 4xx or 5xx kinds."""

    def __init__(self, status: int, detail: str, headers: Headers = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


class Gone(Exception):
    """The client went away; there is nobody to answer."""


def refusal(error: Exception) -> Refused | None:
    """The answer to what runs and stores raise; None for an error that nobody expects."""
    match error:
        case Refused():
            return error
        case UnknownWorkflow():
            return Refused(404, "Workflow not found")
        case UnknownHandler():
            return Refused(404, "Handler not found")
        case AlreadyRunning():
            return Refused(409, f"Handler {str(error)!r} is already running")
        case AlreadyOver():
            return Refused(409, "Workflow already completed")
        case InvalidEvent() | InvalidContext():
            return Refused(400, str(error))
        case StoreUnavailable():
            return Refused(503, str(error) or "Runs cannot be stored now", RETRY_SOON)
    return None

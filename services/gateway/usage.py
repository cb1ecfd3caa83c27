"""What is told about each request when it has ended. `metrics` reads it; the assembly may add a reader of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from services.gateway.access import Caller

CLIENT_CLOSED = 499  # the status that is noted when the client left before there was an answer


@dataclass(slots=True)
class Usage:
    """One request. Times are seconds of the monotonic clock; `status` is what the client was sent.

    `endpoint_id` and `caller` are None when access was refused. `error` is the code of the error that ended it: with
    a status of 200, the one that broke off the answer.
    """

    operation: str
    started: float
    endpoint_id: UUID | None = None
    caller: Caller | None = None
    status: int = 500
    error: str | None = None
    first_byte_at: float | None = None
    ended: float = 0.0
    bytes: int = 0
    worker_id: str | None = None
    prompt_tokens: int = 0  # as the worker counted them; a stream tells only a client that asked for it
    completion_tokens: int = 0


UsageHook = Callable[[Usage], None]

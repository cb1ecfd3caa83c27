"""HTTP answers as outcomes of a step; `failures` has those of requests without one.

Sources add what their server says beyond the status.
"""

import email.utils
import math
from datetime import UTC, datetime

import httpx

from shared.jobs.outcomes import Permanent, Retry, StepError

MAX_WAIT = 3600.0  # seconds; a server that asks for more is asked again after this


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header (a number or a date), at most an hour; None if it says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_WAIT) if math.isfinite(seconds) else None


def outcome_of_status(status: int, headers: httpx.Headers) -> StepError:
    """What a status other than success means for the step."""
    after = retry_after(headers.get("retry-after"))
    if status == 429:
        return Retry("rate_limited", "The server asks to slow down.", after=after)
    if status in (408, 425) or status >= 500:
        return Retry("source_unavailable", f"The server answered {status}.", after=after)
    if status in (401, 403):
        return Permanent("access_denied", f"The server answered {status}: it wants a credential that may read this.")
    if status in (404, 410):
        return Permanent("source_not_found", f"The server answered {status}: there is nothing at this address.")
    return Permanent("source_refused", f"The server answered {status}.")

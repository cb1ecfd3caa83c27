"""The events that a webhook may ask for: `<what>.<state>`, and patterns with `*` at the end."""

from services.app.endpoints.tables import ENDPOINT_STATES
from shared.jobs.tables import JOB_STATES

EXECUTION_STATES = ("running", "completed", "failed", "cancelled")
TEST = "webhook.test"  # sent when somebody asks for it, whatever the webhook's events are
GROUPS = {"job": JOB_STATES, "endpoint": ENDPOINT_STATES, "execution": EXECUTION_STATES}
KNOWN = frozenset(f"{group}.{state}" for group, states in GROUPS.items() for state in states)
PATTERNS = KNOWN | {f"{group}.*" for group in GROUPS} | {"*"}


def patterns_of(event: str) -> list[str]:
    """What a webhook may have asked for to hear of the event."""
    return [event, f"{event.split('.', maxsplit=1)[0]}.*", "*"]

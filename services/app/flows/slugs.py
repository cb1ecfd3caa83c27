"""The short ids of flows and executions: `wf-4g7h8j9k`, `ex-1a2b3c4d`, of which `we-1a2b3c4d` is another spelling."""

import re
import secrets
import string
from uuid import UUID

ALPHABET = string.ascii_lowercase + string.digits
_FLOW = re.compile(r"wf-[a-z0-9]{8}", re.ASCII)
_EXECUTION = re.compile(r"(?:ex|we)-([a-z0-9]{8})", re.ASCII)


def new(prefix: str) -> str:
    return f"{prefix}-{''.join(secrets.choice(ALPHABET) for _ in range(8))}"


def flow(text: str) -> str | UUID | None:
    """What a path names a flow by: its short id, or the UUID that its jobs tell. None for anything else."""
    return text if _FLOW.fullmatch(text) else _uuid(text)


def execution(text: str) -> str | UUID | None:
    """The same of an execution, as it is stored (`ex-…`)."""
    match = _EXECUTION.fullmatch(text)
    return f"ex-{match[1]}" if match else _uuid(text)


def spelled(execution_slug: str, dialect: str) -> str:
    return f"we-{execution_slug[3:]}" if dialect == "tasks" else execution_slug


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text) if len(text) == 36 else None
    except ValueError:
        return None

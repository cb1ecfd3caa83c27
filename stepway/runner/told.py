"""What a server that is joined to a platform tells of itself and of its runs: what a list of them shows, and no more.

What runs take, give and send stays here; of an error its first words go, with what looks like a secret masked.
"""

import hashlib
import re
import socket
from typing import Any
from urllib.parse import urlsplit

from stepway.runner.api import describe
from stepway.runner.api.request import is_name
from stepway.runner.config import Config
from stepway.runner.live import Served
from stepway.runner.store import Handler

LONGEST_ERROR = 300  # characters
_LONGEST_NAME = 100
_MASK = "***"
_SECRETS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?<=://)[^/@\s]+(?=@)",
        r"(?<=bearer )\s*\S+",
        r"\b(?:sk|pk|ghp|gho|hf|xox[a-z]|glpat|AKIA)[-_]?[A-Za-z0-9_-]{12,}",
        r"(?<=[?&])[^=&\s]+=[^&\s]+",
        r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]+",
        r"\b[A-Za-z0-9+_-]{40,}={0,2}",
    )
)
_NAMED = re.compile(
    r"""(\w*(?:passw(?:or)?d|secret|token|api[_-]?key)\w*["']?\s*[=:]\s*)(?:"[^"]*"|'[^']*'|[^\s,;]+)""", re.IGNORECASE
)


def run(handler: Handler, started_key_id: str | None) -> dict[str, Any]:
    """A run as a report has it."""
    completed = handler.completed_at
    return {
        "handler_id": handler.handler_id,
        "run_id": handler.run_id,
        "workflow": handler.workflow_name,
        "status": handler.status,
        "error": None if handler.error is None else error(handler.error),
        "started_at": handler.started_at.isoformat(),
        "updated_at": handler.updated_at.isoformat(),
        "completed_at": None if completed is None else completed.isoformat(),
        "started_key_id": started_key_id,
    }


def can_be(handler: Handler) -> bool:
    """Whether the run can be told of: ids of a program's own making may be what the platform does not take."""
    return is_name(handler.handler_id) and is_name(handler.workflow_name)


def error(text: str) -> str:
    """The first line of an error, without what looks like a secret."""
    line = "".join(one if one.isprintable() else " " for one in text[: 4 * LONGEST_ERROR].strip().partition("\n")[0])
    for pattern in _SECRETS:
        line = pattern.sub(_MASK, line)
    line = _NAMED.sub(rf"\1{_MASK}", line)
    return line if len(line) <= LONGEST_ERROR else line[: LONGEST_ERROR - 1] + "…"


def workflow(served: Served, *, schema: bool) -> dict[str, Any]:
    """A workflow as a registration has it; `schema`: with that of its start event."""
    start = describe.schema_of(served.workflow.start_event_class) if schema else None
    events = sorted({one.__name__ for one in served.events})
    return {"name": served.name, "start_schema": start, "events": [one for one in events if is_name(one)][:200]}


def name(config: Config) -> str:
    """What people call the server."""
    wanted = "".join(one for one in config.name or socket.gethostname() if one.isprintable()).strip()
    return wanted[:_LONGEST_NAME] or "workflows"


def instance(config: Config) -> str:
    """Where the runs are kept: the same for all servers over one store, and after a restart."""
    if config.database is not None:
        parts = urlsplit(config.database)
        place = f"{parts.hostname}:{parts.port or 5432}{parts.path}"
        return f"database:{hashlib.sha256(place.encode()).hexdigest()[:32]}"
    place = socket.gethostname() + (f"\0{config.data_dir.resolve()}" if config.data_dir else f":{config.port}")
    kind = "folder" if config.data_dir else "memory"
    return f"{kind}:{hashlib.sha256(place.encode()).hexdigest()[:32]}"

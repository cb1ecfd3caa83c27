"""Names wherever ids are accepted: an id is taken as it is, a name is looked up, and must be that of one thing only."""

import re
from typing import Any, NamedTuple
from uuid import UUID

from stepway.cli.problems import Refused, Usage
from stepway.client import Client


class Kind(NamedTuple):
    """What is looked up: its word, its list, and the members that may name it."""

    word: str
    path: str
    names: tuple[str, ...] = ("name",)
    id: str = "id"  # the member that holds the id
    short: str | None = None  # what short ids look like (a pattern), of things that have such


MODEL = Kind("model", "/models")
CLUSTER = Kind("cluster", "/clusters")
ENDPOINT = Kind("endpoint", "/endpoints", ("name", "slug"))
TEMPLATE = Kind("template", "/templates")
CREDENTIAL = Kind("credential", "/credentials")
PROJECT = Kind("project", "/projects")
KEY = Kind("key", "/keys", ("name", "prefix"))
USER = Kind("user", "/users")
JOB = Kind("job", "/jobs", ())
WORKFLOW = Kind("workflow", "/workflows", ())
FLOW = Kind("flow", "/flow/workflows", ("name",), "workflow_id", r"wf-[a-z0-9]{8}")
WORKFLOW_SERVER = Kind("workflow server", "/workflow-servers")
WORKFLOW_RUN = Kind("workflow run", "/workflow-runs", ("handler_id", "run_id"))
WEBHOOK = Kind("webhook", "/webhooks", ("url",))

SHOWN = 10


def is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def find_id(client: Client, kind: Kind, ref: str) -> str:
    """The id that `ref` is or names. `Refused` when nothing has the name, `Usage` when several do."""
    if is_id(ref):
        return str(UUID(ref))
    if kind.short is not None and re.fullmatch(kind.short, ref):
        return ref
    if not kind.names:
        raise Usage(f"{ref!r} is not the id of a {kind.word}.")
    found = list(client.items(kind.path, search=ref, limit=1000))
    exact = [one for one in found if ref in _names(kind, one)]
    exact = exact or [one for one in found if ref.lower() in [name.lower() for name in _names(kind, one)]]
    if len(exact) == 1:
        return str(exact[0][kind.id])
    if exact:
        raise Usage(
            f"Several {kind.word}s are called {ref!r}; give the id of one:", [_line(kind, one) for one in exact[:SHOWN]]
        )
    if found:
        near = ", ".join(repr(_names(kind, one)[0]) for one in found[:SHOWN] if _names(kind, one))
        raise Refused(f"No {kind.word} is called {ref!r}. There is {near}.")
    raise Refused(f"No {kind.word} is called {ref!r}.")


def _names(kind: Kind, item: dict[str, Any]) -> list[str]:
    return [str(item[name]) for name in kind.names if item.get(name)]


def _line(kind: Kind, item: dict[str, Any]) -> str:
    where = f" in project {item['project_id']}" if item.get("project_id") else ""
    state = f", {item['state']}" if item.get("state") else ""
    return f"{item[kind.id]}  {item.get('name', '')}{where}{state}"

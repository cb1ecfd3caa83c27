"""`stepway audit`: who did what to what."""

from typing import Annotated

import typer

from stepway.cli.command import Cli, command
from stepway.cli.nouns import Limit
from stepway.cli.output import Column
from stepway.cli.resolve import PROJECT, USER, find_id

COLUMNS = [
    Column("at", "created_at"), Column("who", lambda entry: entry["actor"] or entry["actor_id"]), Column("action", "action"),
    Column("what", lambda entry: " ".join(filter(None, (entry["resource_type"], entry["resource_id"])))),
    Column("from", "address"), Column("details", "details"),
]  # fmt: skip


def add_to(app: typer.Typer) -> None:
    command(app, "audit")(audit)


def audit(
    cli: Cli,
    limit: Limit = 50,
    action: Annotated[str | None, typer.Option("--action", help="For example endpoint.delete.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="What this user did.")] = None,
    project: Annotated[str | None, typer.Option("--project", help="In this project.")] = None,
    resource_id: Annotated[str | None, typer.Option("--resource-id", help="To this thing.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="An RFC 3339 time.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="An RFC 3339 time.")] = None,
) -> None:
    """List who did what to what, newest first."""
    filters = {"action": action, "resource_id": resource_id, "since": since, "until": until}
    filters["actor_id"] = find_id(cli.client, USER, user) if user else None
    filters["project_id"] = find_id(cli.client, PROJECT, project) if project else None
    cli.show_list(cli.client.items("/audit", limit=limit, **filters), COLUMNS)

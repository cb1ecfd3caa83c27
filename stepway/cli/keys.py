"""`stepway keys`: API keys. A new one is shown once."""

from typing import Annotated

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.nouns import add_delete, add_list, add_show
from stepway.cli.output import Column
from stepway.cli.resolve import KEY, PROJECT, USER, find_id

app = group("keys", "API keys. A new one is shown once.")
COLUMNS = [
    Column("name", "name"), Column("key", "prefix"), Column("scopes", "scopes"), Column("state", "state"),
    Column("expires", "expires_at"), Column("last used", "last_used_at"), Column("id", "id"),
]  # fmt: skip

add_list(app, KEY, COLUMNS)
add_show(app, KEY)
add_delete(app, KEY, "revoke")


@command(app, "create")
def create(
    cli: Cli,
    name: str,
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help="read, write or inference; may be repeated.")
    ] = None,
    project: Annotated[str | None, typer.Option("--project", help="For this project only.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="For this user; for admins.")] = None,
    days: Annotated[int | None, typer.Option("--expires-in-days", min=1, max=3650)] = None,
) -> None:
    """Make a key. It is printed in this answer only: on stdout, as the last line of the table."""
    body: dict[str, object] = {"name": name, "scopes": scopes or None, "expires_in_days": days}
    body["project_id"] = find_id(cli.client, PROJECT, project) if project else None
    body["user_id"] = find_id(cli.client, USER, user) if user else None
    made = cli.client.post("/keys", {member: value for member, value in body.items() if value is not None})
    key = made.pop("key")
    cli.out.one({**made, "key": key})
    cli.out.say("Keep the key: it is not shown again.", "yellow")

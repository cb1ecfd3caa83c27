"""`stepway users`: who may do what."""

from typing import Annotated

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.nouns import Ref, add_delete, add_list, add_show
from stepway.cli.output import Column
from stepway.cli.problems import Usage
from stepway.cli.resolve import USER, find_id

app = group("users", "Users and their roles.")
COLUMNS = [
    Column("name", "name"), Column("display name", "display_name"), Column("role", "role"), Column("disabled", "disabled"),
    Column("since", "created_at"), Column("id", "id"),
]  # fmt: skip
Role = Annotated[str | None, typer.Option("--role", help="admin, operator, member or viewer.")]
DisplayName = Annotated[str | None, typer.Option("--display-name")]

add_list(app, USER, COLUMNS)
add_show(app, USER)
add_delete(app, USER)


@command(app, "create")
def create(cli: Cli, name: str, role: Role = None, display_name: DisplayName = None) -> None:
    """Add a user; `stepway keys create --user NAME` makes a key for them."""
    body = {"name": name, "role": role, "display_name": display_name}
    cli.out.one(cli.client.post("/users", {member: value for member, value in body.items() if value is not None}))


@command(app, "change")
def change(
    cli: Cli,
    ref: Ref,
    role: Role = None,
    display_name: DisplayName = None,
    disabled: Annotated[bool | None, typer.Option("--disable/--enable")] = None,
) -> None:
    """Change a user's role or display name, disable or enable them."""
    body = {"role": role, "display_name": display_name, "disabled": disabled}
    given = {member: value for member, value in body.items() if value is not None}
    if not given:
        raise Usage("Nothing to change was given.")
    cli.out.one(cli.client.patch(f"/users/{find_id(cli.client, USER, ref)}", given))

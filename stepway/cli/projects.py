"""`stepway projects`: what belongs together, and who works in it."""

from typing import Annotated

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.nouns import Ref, add_delete, add_list, add_show
from stepway.cli.output import Column
from stepway.cli.resolve import PROJECT, USER, find_id

app = group("projects", "Projects: what belongs together, and who works in it.")
members = group("members", "Who works in a project.")
app.add_typer(members)
COLUMNS = [
    Column("name", "name"), Column("your role", "role"), Column("scan required", "policy.require_scan"),
    Column("blocked from", "policy.block_severity"), Column("description", "description"), Column("id", "id"),
]  # fmt: skip
MEMBERS = [Column("user", "user.name"), Column("role", "role"), Column("since", "created_at"), Column("id", "user_id")]
User = Annotated[str, typer.Argument(metavar="USER", help="The user's name or id.")]

add_list(app, PROJECT, COLUMNS)
add_show(app, PROJECT)
add_delete(app, PROJECT)


@command(app, "create")
def create(cli: Cli, name: str, description: Annotated[str | None, typer.Option("--description")] = None) -> None:
    """Make a project; whoever makes it manages it."""
    cli.out.one(cli.client.post("/projects", {"name": name, **({"description": description} if description else {})}))


@command(members, "list")
def list_members(cli: Cli, ref: Ref) -> None:
    """List a project's members."""
    cli.show_list(cli.client.items(f"/projects/{find_id(cli.client, PROJECT, ref)}/members"), MEMBERS)


@command(members, "add")
def add_member(
    cli: Cli,
    ref: Ref,
    user: User,
    role: Annotated[str, typer.Option("--role", help="manager, member or viewer.")] = "member",
) -> None:
    """Make a user a member, or change a member's role."""
    path = f"/projects/{find_id(cli.client, PROJECT, ref)}/members/{find_id(cli.client, USER, user)}"
    cli.out.one(cli.client.put(path, {"role": role}))


@command(members, "remove")
def remove_member(cli: Cli, ref: Ref, user: User) -> None:
    """Take a member out of a project."""
    cli.client.delete(f"/projects/{find_id(cli.client, PROJECT, ref)}/members/{find_id(cli.client, USER, user)}")
    cli.out.say(f"{user} is no member of {ref} any more.")

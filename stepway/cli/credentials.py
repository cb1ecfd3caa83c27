"""`stepway credentials`: keys of hubs and providers. Secret fields are asked for, never given on the command line."""

from typing import Annotated, Any

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.nouns import add_delete, add_list, add_show, pairs
from stepway.cli.output import Column
from stepway.cli.problems import Usage
from stepway.cli.resolve import CREDENTIAL, PROJECT, find_id
from stepway.cli.terminal import line, secret

app = group("credentials", "Credentials of hubs and providers; their secrets are never shown again.")
COLUMNS = [
    Column("name", "name"), Column("type", "type"), Column("fields", "fields"), Column("secrets", "secrets"),
    Column("last used", "last_used_at"), Column("id", "id"),
]  # fmt: skip
TYPES = [
    Column("type", "key"), Column("name", "name"),
    Column("fields", lambda kind: [f"{one['name']}{'' if one['required'] else '?'}" for one in kind["fields"]]),
    Column("description", "description"),
]  # fmt: skip

add_list(app, CREDENTIAL, COLUMNS)
add_show(app, CREDENTIAL)
add_delete(app, CREDENTIAL)


@command(app, "types")
def types(cli: Cli) -> None:
    """List the kinds of credentials and their fields."""
    cli.show_list(cli.client.items("/credential-types"), TYPES)


@command(app, "create")
def create(
    cli: Cli,
    name: str,
    type: Annotated[str, typer.Option("--type", "-t", help="A kind of `stepway credentials types`.")],
    project: Annotated[
        str | None, typer.Option("--project", help="Whose members may use it; without, only you.")
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field that is no secret.")
    ] = None,
) -> None:
    """Keep a credential. Its secrets are asked for; a script pipes them in, a line each, in the order of the fields."""
    kinds = {one["key"]: one for one in cli.client.items("/credential-types")}
    if type not in kinds:
        raise Usage(f"There is no kind of credential called {type!r}.", sorted(kinds))
    body = {"name": name, "type": type, "fields": _fields(kinds[type], pairs(values or []))}
    if project is not None:
        body["project_id"] = find_id(cli.client, PROJECT, project)
    cli.out.one(cli.client.post("/credentials", body))


def _fields(kind: dict[str, Any], given: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in kind["fields"]:
        name, label = field["name"], field.get("label") or field["name"]
        if field["secret"]:
            if name in given:
                raise Usage(f"{name} is a secret: other users could read it on the command line. It will be asked for.")
            text = secret(f"{label}{'' if field['required'] else ' (empty for none)'}: ")
        elif name in given:
            text = given.pop(name)
        elif field["required"]:
            text = line(f"{label}: ")
        else:
            continue
        if text:
            found[name] = text
    return {**found, **given}

"""`stepway templates`: defaults of a deployment for a kind of use."""

from typing import Annotated

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.nouns import add_delete, add_list, add_show, pairs
from stepway.cli.output import Column
from stepway.cli.problems import Usage
from stepway.cli.resolve import TEMPLATE
from stepway.cli.values import Unreadable, read

app = group("templates", "Templates: defaults of a deployment for a kind of use.")
COLUMNS = [
    Column("name", "name"), Column("type", "template_type"), Column("built in", "builtin"),
    Column("requests", "deploy_config.concurrent_requests"), Column("input", "deploy_config.avg_context_length"),
    Column("output", "deploy_config.avg_sequence_length"), Column("id", "id"),
]  # fmt: skip

add_list(app, TEMPLATE, COLUMNS)
add_show(app, TEMPLATE)
add_delete(app, TEMPLATE)


@command(app, "create")
def create(
    cli: Cli,
    name: str,
    values: Annotated[list[str], typer.Option("--set", metavar="NAME=VALUE", help="A part of deploy_config.")],
    template_type: Annotated[str, typer.Option("--type", help="chat, summarization, rag, code, … or other.")] = "other",
    description: Annotated[str | None, typer.Option("--description")] = None,
) -> None:
    """Make a template: `--set concurrent_requests=4 --set ttft=50,1000`."""
    config = {one: _value(one, text) for one, text in pairs(values).items()}
    body = {"name": name, "template_type": template_type, "deploy_config": config}
    cli.out.one(cli.client.post("/templates", {**body, **({"description": description} if description else {})}))


def _value(name: str, text: str) -> object:
    try:
        return read({"type": "array"} if "," in text else {"type": "number"}, text)
    except Unreadable as error:
        raise Usage(f"{name}: {error}") from error

"""What all nouns have in common: `list`, `show` and `delete` over a list of the API."""

from typing import Annotated, Any

import typer

from stepway.cli.command import Cli, command
from stepway.cli.following import follow
from stepway.cli.output import Columns
from stepway.cli.problems import Usage
from stepway.cli.resolve import Kind, find_id
from stepway.cli.terminal import confirm_change

Search = Annotated[str | None, typer.Option("--search", "-s", help="Only what contains this text.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")]
OrderBy = Annotated[str | None, typer.Option("--order-by", help="A field; -field to descend.")]
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", "-f", metavar="NAME=VALUE", help="A filter of the list, e.g. state=active."),
]
Ref = Annotated[str, typer.Argument(metavar="NAME", help="Its name or id.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Its id.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the job's end.")]


def add_list(app: typer.Typer, kind: Kind, columns: Columns) -> None:
    def list_all(
        cli: Cli, search: Search = None, limit: Limit = 50, order_by: OrderBy = None, filters: Filters = None
    ) -> None:
        given = pairs(filters or [])
        items = cli.client.items(kind.path, limit=limit, search=search, order_by=order_by, **given)
        cli.show_list(items, columns)

    list_all.__doc__ = f"List {kind.word}s."
    command(app, "list")(list_all)


def add_show(app: typer.Typer, kind: Kind) -> None:
    def show(cli: Cli, ref: Ref) -> None:
        cli.out.one(cli.client.get(f"{kind.path}/{find_id(cli.client, kind, ref)}"))

    show.__doc__ = f"Show a {kind.word}."
    command(app, "show")(show)


def add_delete(app: typer.Typer, kind: Kind, word: str = "delete", past: str | None = None) -> None:
    def delete(cli: Cli, ref: Ref, yes: Yes = False, detach: Detach = False) -> None:
        found = find_id(cli.client, kind, ref)
        confirm_change(cli.out, f"{word.capitalize()} the {kind.word} {ref}?", sure=yes)
        finish(
            cli,
            cli.client.delete(f"{kind.path}/{found}"),
            f"The {kind.word} {ref} is {past or word + 'd'}.",
            detach=detach,
        )

    delete.__doc__ = f"{word.capitalize()} a {kind.word}."
    command(app, word)(delete)


def finish(cli: Cli, job: Any, done: str, *, detach: bool) -> None:
    """After a request that may have begun a job: follow it, unless detached, and say what is done."""
    if isinstance(job, dict) and job.get("object") == "job":
        if not detach:
            job = follow(cli.client, cli.out, job["id"])
        else:
            done = f"The job {job['id']} works on it: stepway jobs watch {job['id']}"
        if not cli.out.is_table:
            cli.out.data(job)
    cli.out.say(done)


def pairs(given: list[str]) -> dict[str, str]:
    """`name=value` options as a dictionary."""
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise Usage(f"{one!r} is not NAME=VALUE.")
        found[name] = value
    return found

"""`stepway flows files`: files that flows are given, uploaded into a project and downloaded."""

import os
from pathlib import Path
from typing import Annotated

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.nouns import Limit, Search, Yes
from stepway.cli.output import Column, size
from stepway.cli.problems import Refused, Usage
from stepway.cli.resolve import PROJECT, Kind, find_id
from stepway.cli.terminal import confirm_change

app = group("files", "Files that flows are given.")
FILE = Kind("file", "/flow/files", ("name",), "artifact_id")
COLUMNS = [
    Column("name", "name"), Column("type", "media_type"), Column("size", lambda item: size(item["size"])),
    Column("uploaded", "created_at"), Column("used", "used_at"), Column("id", "artifact_id"),
]  # fmt: skip

File = Annotated[str, typer.Argument(metavar="FILE", help="Its name or id.")]
Project = Annotated[str | None, typer.Option("--project", help="Its name or id; the one that you begin in, without.")]


@command(app, "list")
def list_all(
    cli: Cli,
    project: Annotated[str | None, typer.Option("--project", help="Only files of this one.")] = None,
    search: Search = None,
    limit: Limit = 50,
) -> None:
    """List uploaded files, the newest first."""
    home = None if project is None else find_id(cli.client, PROJECT, project)
    cli.show_list(cli.client.items(FILE.path, limit=limit, search=search, project_id=home), COLUMNS)


@command(app, "show")
def show(cli: Cli, file: File) -> None:
    """Show a file; with -o json it is the value for an input of type file."""
    cli.out.one(cli.client.get(f"{FILE.path}/{find_id(cli.client, FILE, file)}"))


@command(app, "upload")
def upload(
    cli: Cli,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", exists=True, dir_okay=False)],
    project: Project = None,
) -> None:
    """Upload files into a project. Each stays for 30 days after an execution was last given it."""
    home = None if project is None else find_id(cli.client, PROJECT, project)
    made = [cli.client.upload(FILE.path, path, project_id=home) for path in paths]
    cli.out.rows(made, [column for column in COLUMNS if column.title not in ("uploaded", "used")])


@command(app, "download")
def download(
    cli: Cli,
    file: File,
    to: Annotated[Path | None, typer.Option("--to", help="Where to; under its own name here, without.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Download a file. Nothing is left of one that does not come whole."""
    path = f"{FILE.path}/{find_id(cli.client, FILE, file)}"
    shown = cli.client.get(path)
    name = Path(shown["name"]).name
    target = (to or Path()) / ("file" if name in ("", "..") else name) if to is None or to.is_dir() else to
    if target.exists() and not force:
        raise Usage(f"{target} is there already; --force replaces it.")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as written, cli.client.stream("GET", f"{path}/content", silence=60) as answer:
            for chunk in answer.iter_bytes():
                written.write(chunk)
        if part.stat().st_size != shown["size"]:
            raise Refused(f"Only {part.stat().st_size} of {shown['size']} bytes came; try again.")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    cli.out.say(f"{target}: {size(shown['size'])}")


@command(app, "delete")
def delete(cli: Cli, file: File, yes: Yes = False) -> None:
    """Delete a file that no execution uses which runs."""
    path = f"{FILE.path}/{find_id(cli.client, FILE, file)}"
    confirm_change(cli.out, f"Delete the file {file}?", sure=yes)
    cli.client.delete(path)
    cli.out.say(f"The file {file} is deleted.")

"""The commands of the server itself: `up`, `check`, `backup`, `restore`, `objects`, `keys rotate-encryption`, and `demo`.

They alone import the server, and only when they run.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.output import Format
from stepway.cli.problems import Usage

if TYPE_CHECKING:
    from shared.settings import Settings

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where everything is kept.", show_default="~/.local/share/stepway")
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", help="A PostgreSQL to use; prefer DATABASE_URL when it holds a password."),
]
Archive = Annotated[Path, typer.Argument(metavar="FILE", help="The archive.")]


def add_to(app: typer.Typer, keys: typer.Typer) -> None:
    command(app, "up")(up)
    command(app, "demo")(demo)
    command(app, "check")(check)
    command(app, "backup")(backup)
    command(app, "restore")(restore)
    command(keys, "rotate-encryption")(rotate_encryption)
    objects = group("objects", "Where the bytes of models are kept.")
    command(objects, "migrate")(migrate)
    app.add_typer(objects)


def up(
    cli: Cli,
    data_dir: DataDir = None,
    host: Annotated[
        str | None, typer.Option("--host", help="The address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="The port; 0 for a free one.", show_default="8400")
    ] = None,
    ready_file: Annotated[Path | None, typer.Option("--ready-file", help="Written when the service is ready.")] = None,
    database_url: DatabaseUrl = None,
    model_roots: Annotated[
        list[str] | None,
        typer.Option("--model-root", help="A folder from which models may be added; may be repeated."),
    ] = None,
    log_json: Annotated[bool | None, typer.Option("--log-json/--log-text", help="How logs are written.")] = None,
) -> None:
    """Run Stepway: the API, the jobs, this machine as a cluster, and PostgreSQL. Ctrl-C stops it."""
    from services.embedded.main import run_up

    given = {"host": host, "port": port, "model_roots": model_roots or None}
    raise typer.Exit(run_up(_settings(data_dir, database_url, **given), ready_file, json_logs=log_json))


def check(
    cli: Cli,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Try every setting, and say of each what is wrong and what to do next. Exits with 1 when something is wrong."""
    from services.embedded.check import run_check

    as_json = as_json or cli.out.form is Format.JSON
    raise typer.Exit(run_check(_settings(data_dir, database_url), as_json=as_json))


def migrate(
    cli: Cli,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="PLACE", help="A folder, or s3://bucket/prefix.", show_default="ours"),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--to", metavar="PLACE", help="A folder, or s3://bucket/prefix.", show_default="ours")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be copied.")] = False,
    delete_source: Annotated[
        bool, typer.Option("--delete-source", help="Delete there what is here alike, once all is verified.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Copy all objects from a folder into a bucket, or back, while Stepway is stopped. It can be cut off and repeated.

    The endpoint and the keys are those of STEPWAY_S3_*; the place that is not given is the installation's own.
    """
    from services.embedded.objects import run_migrate

    settings = _settings(data_dir, None)
    raise typer.Exit(run_migrate(settings, source, target, dry=dry_run, delete_source=delete_source))


def backup(cli: Cli, file: Archive, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Write the database, the objects and the encryption key into one archive, while Stepway runs or not."""
    from services.embedded.backup import run_backup

    raise typer.Exit(run_backup(_settings(data_dir, database_url), file))


def restore(cli: Cli, file: Archive, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Fill an empty data directory from a backup that you made: an archive of a stranger's could do anything."""
    from services.embedded.backup import run_restore

    raise typer.Exit(run_restore(_settings(data_dir, database_url), file))


def rotate_encryption(cli: Cli, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Make a new encryption key and bring every secret under it, while Stepway runs or not."""
    from services.embedded.backup import run_rotate_encryption

    raise typer.Exit(run_rotate_encryption(_settings(data_dir, database_url)))


def demo(
    cli: Cli,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Where everything is kept.", show_default="~/.local/share/stepway-demo"),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 for a free one.")] = 0,
    exit_at_end: Annotated[
        bool, typer.Option("--exit", help="End at the end, instead of staying up until Ctrl-C.")
    ] = False,
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", metavar="KUBECONFIG", help="Deploy to this Kubernetes cluster, not on this machine."),
    ] = None,
    on: Annotated[
        str | None, typer.Option("--on", metavar="URL", help="Use the Stepway that runs there; with --key-file.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="The file with the key of an admin of it.")
    ] = None,
) -> None:
    """Show it all: start Stepway, take a small model through the wizards, ask it something."""
    from stepway.demo.main import run_demo
    from stepway.demo.server import Existing

    if (on is None) != (key_file is None):
        raise Usage("--on and --key-file go together.")
    existing = Existing(on, key_file) if on is not None and key_file is not None else None
    raise typer.Exit(run_demo(data_dir, port=port, stay=not exit_at_end, kubeconfig=cluster, existing=existing))


def _settings(data_dir: Path | None, database_url: str | None, **given: object) -> "Settings":
    return settings_of(data_dir=data_dir, database_url=database_url, **given)


def settings_of(**given: object) -> "Settings":
    """The server's settings: the environment, and what was given on the command line."""
    from pydantic import ValidationError

    from shared.settings import load

    try:
        return load(os.environ, **given)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False)]
        raise Usage("A setting is wrong:", faults) from None

"""`stepway service`: one service as a process of its own; `stepway db`: what is done to the database by hand or by a hook."""

from pathlib import Path
from typing import Annotated

import typer

from stepway.cli.command import Cli, command
from stepway.cli.problems import Usage
from stepway.cli.server import DatabaseUrl, settings_of

SERVICES = ("app", "model", "cluster", "flow", "gateway")

Dump = Annotated[Path, typer.Argument(metavar="FILE", help="The dump.")]

db = typer.Typer(name="db", no_args_is_help=True, help="The database of an installation that runs as services.")


def add_to(app: typer.Typer) -> None:
    command(app, "service")(service)
    app.add_typer(db)
    command(db, "upgrade")(upgrade)
    command(db, "check")(check)
    command(db, "dump")(dump)
    command(db, "restore")(restore)
    command(db, "admin-key")(admin_key)
    command(db, "make-key")(make_key)


def service(
    cli: Cli,
    name: Annotated[str, typer.Argument(metavar="|".join(SERVICES), help="Which one.")],
    ready_file: Annotated[Path | None, typer.Option("--ready-file", help="Written when the service is ready.")] = None,
) -> None:
    """Run one service beside its Dapr sidecar, by the settings of its environment. SIGTERM stops it."""
    from services.distributed.services import run

    if name not in SERVICES:
        raise Usage(f"There is no service {name}.", list(SERVICES))
    run(settings_of(), name, ready_file)


def upgrade(cli: Cli, database_url: DatabaseUrl = None) -> None:
    """Bring the database to the newest version. Several may do so at once."""
    from services.assembly.database import run_upgrade

    raise typer.Exit(run_upgrade(settings_of(database_url=database_url)))


def check(cli: Cli, database_url: DatabaseUrl = None) -> None:
    """Say whether the database has this version's schema: 0 when it has, or a later one's."""
    from services.assembly.database import run_check

    raise typer.Exit(run_check(settings_of(database_url=database_url)))


def dump(cli: Cli, file: Dump, database_url: DatabaseUrl = None) -> None:
    """Write the whole database to a file that is not there yet, while Stepway runs or not."""
    from services.assembly.database import run_dump

    raise typer.Exit(run_dump(settings_of(database_url=database_url), file.absolute()))


def restore(cli: Cli, file: Dump, database_url: DatabaseUrl = None) -> None:
    """Fill an empty database from a dump that you made: one of a stranger's could do anything."""
    from services.assembly.database import run_restore

    raise typer.Exit(run_restore(settings_of(database_url=database_url), file.absolute()))


def admin_key(cli: Cli, database_url: DatabaseUrl = None) -> None:
    """Make the first admin, and print the key, once. Does nothing where there is a user already."""
    from services.assembly.database import run_admin_key

    raise typer.Exit(run_admin_key(settings_of(database_url=database_url)))


def make_key(
    cli: Cli, file: Annotated[Path, typer.Argument(metavar="FILE", help="Where STEPWAY_KEY_FILE will say it is.")]
) -> None:
    """Make the encryption key of an installation in a file, unless one is there."""
    from services.assembly.database import run_make_key

    raise typer.Exit(run_make_key(file.absolute()))

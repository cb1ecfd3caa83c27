"""`stepway up` and `stepway demo`: the server itself. The only commands that import it, and only when they run."""

import os
from pathlib import Path
from typing import Annotated

import typer

from stepway.cli.command import Cli, command
from stepway.cli.problems import Usage

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where everything is kept.", show_default="~/.local/share/stepway")
]
Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="The port; 0 for a free one.", show_default="8400")
]


def add_to(app: typer.Typer) -> None:
    command(app, "up")(up)
    command(app, "demo")(demo)


def up(
    cli: Cli,
    data_dir: DataDir = None,
    host: Annotated[
        str | None, typer.Option("--host", help="The address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Port = None,
    ready_file: Annotated[Path | None, typer.Option("--ready-file", help="Written when the service is ready.")] = None,
    database_url: Annotated[
        str | None,
        typer.Option("--database-url", help="A PostgreSQL to use; prefer DATABASE_URL when it holds a password."),
    ] = None,
    model_roots: Annotated[
        list[str] | None, typer.Option("--model-root", help="A folder from which models may be added; may be repeated.")
    ] = None,
    log_json: Annotated[bool | None, typer.Option("--log-json/--log-text", help="How logs are written.")] = None,
) -> None:
    """Run Stepway: the API, the jobs, this machine as a cluster, and PostgreSQL. Ctrl-C stops it."""
    from pydantic import ValidationError

    from services.embedded.main import run_up
    from shared.settings import load

    try:
        settings = load(
            os.environ,
            data_dir=data_dir,
            host=host,
            port=port,
            database_url=database_url,
            model_roots=model_roots or None,
        )
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False)]
        raise Usage("A setting is wrong:", faults) from None
    raise typer.Exit(run_up(settings, ready_file, json_logs=log_json))


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
) -> None:
    """Show it all: start Stepway, take a small model through the wizards, ask it something."""
    from stepway.demo.main import run_demo

    raise typer.Exit(run_demo(data_dir, port=port, stay=not exit_at_end))

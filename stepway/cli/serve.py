"""`stepway serve FILE`: serves the workflows of a Python file over HTTP. The flags are `settings.SETTINGS`.

It is no `@command`, as it has nothing to do with a login or with tables, and it imports nothing of the server but its
settings until it runs.
"""

import inspect
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from stepway.runner.settings import SETTINGS, Setting

NAME = "serve"


def add_to(app: typer.Typer) -> None:
    app.command(NAME)(_command())


def serve(file: str, reload: bool, check: bool, **flags: Any) -> None:
    """Serve the workflows of a Python file over HTTP. Ctrl-C stops it.

    FILE holds a WorkflowServer of stepway.runner, or workflows; FILE:NAME is one of several.
    """
    from stepway.runner import command

    texts = {name: "true" if text is True else text for name, text in flags.items() if text not in (None, False)}
    raise typer.Exit(command.serve(file, texts, reload=reload, check=check))


def _command() -> Any:
    def run(**given: Any) -> None:
        serve(**given)

    parameters = list(_parameters())
    run.__doc__ = serve.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _parameters() -> Iterator[inspect.Parameter]:
    keyword = inspect.Parameter.KEYWORD_ONLY
    file = Annotated[str, typer.Argument(metavar="FILE", help="The file, or FILE:NAME.")]
    yield inspect.Parameter("file", keyword, annotation=file)
    for one in SETTINGS:
        yield inspect.Parameter(one.name, keyword, annotation=_annotation(one), default=None)
    for name, told in (
        ("reload", "For development: load the file again when Python files in its folder change."),
        ("check", "Load the file, say what would be served, and end."),
    ):
        option = Annotated[bool, typer.Option(f"--{name}", help=told)]
        yield inspect.Parameter(name, keyword, annotation=option, default=False)


def _annotation(one: Setting) -> Any:
    shown = f"{one.help} [{one.variable}]"
    if not one.metavar:
        return Annotated[bool | None, typer.Option(one.flag, help=shown, show_default=False)]
    return Annotated[
        str | None, typer.Option(one.flag, metavar=one.metavar, help=shown, show_default=one.usual or False)
    ]

"""How commands are made: `@command(app, "name")` gives each its `--output` and a `Cli`, which has the client and the printer."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from stepway.cli import config
from stepway.cli.output import Format, Printer
from stepway.cli.problems import Usage
from stepway.client import Client

P = ParamSpec("P")
OutputOption = Annotated[
    Format | None,
    typer.Option(
        "--output", "-o", help="How data is printed; table by default.", show_default=False, metavar="table|json|yaml"
    ),
]


@dataclass(frozen=True, slots=True)
class Globals:
    """The options before the command."""

    output: Format | None = None
    url: str | None = None


class Cli:
    """What a command works with."""

    def __init__(self, given: Globals, output: Format | None) -> None:
        self.url = given.url
        self.out = Printer(output or given.output or Format.TABLE)

    @cached_property
    def client(self) -> Client:
        """The client of the current login. `Usage` when there is no key."""
        login = config.current(self.url)
        if not login.key:
            raise Usage(f"There is no key for {login.url}: run `stepway login --url {login.url}`, or set STEPWAY_KEY.")
        return Client(login.url, login.key)

    def show_list(self, items: Any, columns: Any) -> None:
        self.out.rows(list(items), columns)


def group(name: str, help: str) -> typer.Typer:
    """A noun, to be added to the main application by `main`."""
    return typer.Typer(name=name, help=help, no_args_is_help=True)


def command(app: typer.Typer, name: str) -> Callable[[Callable[Concatenate[Cli, P], None]], Callable[..., None]]:
    """Makes a function a command: its first parameter is the `Cli`, the others are what typer reads, and `--output`."""

    def decorate(function: Callable[Concatenate[Cli, P], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(ctx: typer.Context, /, output: Format | None, **given: Any) -> None:
            function(Cli(ctx.obj or Globals(), output), **given)  # type: ignore[call-arg]  # as the signature below says

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        keyword = inspect.Parameter.KEYWORD_ONLY
        first = inspect.Parameter("ctx", keyword, annotation=typer.Context)
        last = inspect.Parameter("output", keyword, annotation=OutputOption, default=None)
        parameters = [first, *(one.replace(kind=keyword) for one in own), last]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        app.command(name)(_by_keyword(run))
        return run

    return decorate


def _by_keyword(run: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(run)
    def call(**given: Any) -> None:
        run(given.pop("ctx"), **given)

    return call

"""`python -m stepway.runner FILE`: the same as `stepway serve FILE`, without the rest of the command line."""

import typer

from stepway.cli import serve

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
serve.add_to(app)

if __name__ == "__main__":
    app(prog_name="python -m stepway.runner")

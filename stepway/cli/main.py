"""The `stepway` command: all nouns, the options before them, and what an error looks like."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from stepway.cli import (
    audit,
    clusters,
    credentials,
    endpoints,
    flows,
    jobs,
    keys,
    login,
    models,
    projects,
    serve,
    server,
    services,
    templates,
    users,
    webhooks,
    wizard,
    workflow_servers,
    workflows,
)  # fmt: skip
from stepway.cli.command import Globals
from stepway.cli.following import reason
from stepway.cli.output import Format, Printer
from stepway.cli.problems import INTERRUPTED, JOB_FAILED, REFUSED, UNREACHABLE, USAGE, JobFailed, Refused, Usage
from stepway.client import ApiError, Unreachable

app = typer.Typer(
    name="stepway", no_args_is_help=True, pretty_exceptions_enable=False,
    help="Takes AI models from found to served to used.",
)  # fmt: skip
server.add_to(app, keys.app)
serve.add_to(app)
services.add_to(app)
login.add_to(app)
for noun in (
    wizard, workflows, flows, jobs, models, clusters, endpoints, templates, credentials, webhooks, projects, keys, users,
):  # fmt: skip
    app.add_typer(noun.app)
app.add_typer(workflow_servers.app)
app.add_typer(workflow_servers.runs)
audit.add_to(app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"stepway {version('stepway')}")
        raise typer.Exit


@app.callback()
def _globals(
    ctx: typer.Context,
    output: Annotated[
        Format | None,
        typer.Option(
            "--output",
            "-o",
            help="How data is printed; table by default.",
            show_default=False,
            metavar="table|json|yaml",
        ),
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="The server, instead of the one of the login.")] = None,
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    ctx.obj = Globals(output, url)


def main() -> None:
    """Runs the command, and ends the process with an exit code of `problems`."""
    out = Printer()
    try:
        app()
    except Usage as error:
        out.say(f"stepway: {error}", "red")
        for candidate in error.candidates:
            out.say(f"  {candidate}")
        code = USAGE
    except ApiError as error:
        _show_refusal(out, error)
        code = REFUSED
    except Refused as error:
        out.say(f"stepway: {error}", "red")
        code = REFUSED
    except Unreachable as error:
        out.say(f"stepway: {error}", "red")
        code = UNREACHABLE
    except JobFailed as error:
        _show_job(out, error)
        code = JOB_FAILED
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read it has gone
        else:
            out.say(f"stepway: {error.filename or ''}: {error.strerror or error}".replace(" : ", " "), "red")
        code = REFUSED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:  # the edge: a fault of ours, told in a sentence
        if os.environ.get("STEPWAY_TRACEBACK"):
            raise
        out.say(f"stepway: A fault of its own: {type(error).__name__}: {error}", "red")
        out.say("  Set STEPWAY_TRACEBACK=1 and repeat the command to see where.", "dim")
        code = REFUSED
    sys.exit(code)


def _show_refusal(out: Printer, error: ApiError) -> None:
    """What was refused, every fault of it, and where the remedy is."""
    out.say(f"stepway: {error.detail}", "red")
    for one in error.errors:
        step = f" (step {one['step']})" if one.get("step") else ""
        if one.get("param") and one.get("message") != error.detail:
            out.say(f"  {one['param']}{step}: {one['message']}")
    if error.help_url is not None:
        out.say(f"  {error.code}: see {error.help_url}", "dim")


def _show_job(out: Printer, error: JobFailed) -> None:
    job = error.job
    out.say(f"stepway: the job {job['kind']} ended as {job['state']}{reason(job)}", "red")
    if job["state"] in ("failed", "cleanup_required"):
        out.say(f"  Run it again from where it failed: stepway jobs retry {job['id']}", "dim")


if __name__ == "__main__":
    main()

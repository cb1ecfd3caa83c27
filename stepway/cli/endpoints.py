"""`stepway endpoints`: what serves, with how many workers, what they write, and a chat with it."""

from typing import Annotated, Any

import typer

from stepway.cli import chat
from stepway.cli.command import Cli, command, group
from stepway.cli.following import follow
from stepway.cli.nouns import Detach, Ref, Yes, add_delete, add_list, add_show, finish
from stepway.cli.output import Column, size
from stepway.cli.resolve import ENDPOINT, find_id
from stepway.cli.terminal import confirm_change
from stepway.wizards import run_wizard

app = group("endpoints", "Endpoints: what serves, its workers and logs, and a chat with it.")


def _ready(endpoint: dict[str, Any]) -> str:
    return f"{endpoint['replicas']['ready']}/{endpoint['replicas']['desired']}"


COLUMNS = [
    Column("name", "name"), Column("state", "state"), Column("workers", _ready), Column("concurrency", "concurrency.total"),
    Column("engine", "engine"), Column("reason", "reason"), Column("id", "id"),
]  # fmt: skip
WORKERS = [
    Column("id", "id"), Column("state", "state"), Column("restarts", "restarts"), Column("pid", "pid"),
    Column("memory", lambda worker: size(worker.get("memory_bytes"))), Column("reason", "reason"),
]  # fmt: skip

add_list(app, ENDPOINT, COLUMNS)
add_show(app, ENDPOINT)
add_delete(app, ENDPOINT)


@command(app, "workers")
def workers(cli: Cli, ref: Ref) -> None:
    """List an endpoint's workers."""
    cli.show_list(cli.client.items(f"/endpoints/{find_id(cli.client, ENDPOINT, ref)}/workers"), WORKERS)


@command(app, "add-worker")
def add_worker(
    cli: Cli,
    ref: Ref,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, help="So many more requests at the same time.")
    ],
    detach: Detach = False,
) -> None:
    """Add workers for more requests at the same time; it is rounded up to whole workers."""
    fields = {"endpoint_id": find_id(cli.client, ENDPOINT, ref), "additional_concurrency": concurrency}
    workflow = run_wizard(cli.client, "add_worker_to_endpoint", fields)
    if not detach:
        follow(cli.client, cli.out, workflow["job"]["id"])
        workflow = cli.client.get(f"/workflows/{workflow['workflow_id']}")
    if not cli.out.is_table:
        cli.out.data(workflow)
    elif detach:
        cli.out.say(f"The job {workflow['job']['id']} works on it: stepway jobs watch {workflow['job']['id']}")
    else:
        cli.out.one(workflow["result"])


@command(app, "remove-worker")
def remove_worker(
    cli: Cli,
    ref: Ref,
    count: Annotated[int, typer.Option("--count", min=1, help="So many, the newest first.")] = 1,
    yes: Yes = False,
    detach: Detach = False,
) -> None:
    """Remove the newest workers; at least one stays."""
    found = find_id(cli.client, ENDPOINT, ref)
    confirm_change(cli.out, f"Remove {count} of the workers of {ref}?", sure=yes)
    job = cli.client.delete(f"/endpoints/{found}/workers", count=count)
    finish(cli, job, f"{count} worker{'s' if count > 1 else ''} removed.", detach=detach)


@command(app, "logs")
def logs(
    cli: Cli,
    ref: Ref,
    follow_on: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=1, max=5000, help="So many of the last lines.")] = 200,
    worker: Annotated[str | None, typer.Option("--worker", "-w", help="Of this worker only.")] = None,
) -> None:
    """Print the logs of an endpoint's workers."""
    path = f"/endpoints/{find_id(cli.client, ENDPOINT, ref)}/logs"
    params = {"tail": tail, "worker": worker, "follow": "true" if follow_on else None}
    with cli.client.stream("GET", path, params=params, silence=None if follow_on else 60.0) as response:
        for line in response.iter_lines():
            cli.out.write(line + "\n")


@command(app, "chat")
def talk(
    cli: Cli,
    ref: Ref,
    prompt: Annotated[str | None, typer.Argument(help="What to ask; without it, a conversation.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told first.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="The answer's length at most.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, max=2)] = None,
) -> None:
    """Ask an endpoint; the answer is printed as it comes."""
    conversation = chat.Conversation(
        cli, find_id(cli.client, ENDPOINT, ref), system, {"max_tokens": max_tokens, "temperature": temperature}
    )
    if prompt is None:
        conversation.talk()
    elif cli.out.is_table:
        conversation.ask(prompt)
    else:
        cli.out.data(conversation.whole(prompt))

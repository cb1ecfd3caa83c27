"""`stepway webhooks`: who is told of jobs, endpoints and executions, and what became of each message."""

from typing import Annotated

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.nouns import Limit, Ref, add_delete, add_list, add_show
from stepway.cli.output import Column
from stepway.cli.resolve import PROJECT, WEBHOOK, Kind, find_id

app = group("webhooks", "Webhooks: addresses that are told of changes, and what they were told.")
COLUMNS = [
    Column("url", "url"), Column("events", "events"), Column("enabled", "enabled"), Column("reason", "reason"),
    Column("id", "id"),
]  # fmt: skip
DELIVERIES = [
    Column("id", "id"), Column("event", "event"), Column("state", "state"), Column("attempts", "attempts"),
    Column("answer", lambda item: item["log"][-1]["status"] if item["log"] else None),
    Column("error", lambda item: item["log"][-1]["error"] if item["log"] else None),
    Column("next", "next_at"), Column("created", "created_at"),
]  # fmt: skip
DELIVERY = Kind("delivery", "", ())

add_list(app, WEBHOOK, COLUMNS)
add_show(app, WEBHOOK)
add_delete(app, WEBHOOK)


@command(app, "create")
def create(
    cli: Cli,
    url: str,
    project: Annotated[str, typer.Option("--project", help="Whose changes are told.")],
    events: Annotated[
        list[str], typer.Option("--event", "-e", help="execution.*, job.failed, endpoint.*, …; may be repeated.")
    ],
    description: Annotated[str | None, typer.Option("--description")] = None,
) -> None:
    """Make a webhook. The secret that signs its messages is printed in this answer only."""
    body = {"project_id": find_id(cli.client, PROJECT, project), "url": url, "events": events}
    cli.out.one(cli.client.post("/webhooks", {**body, **({"description": description} if description else {})}))
    cli.out.say("Keep the secret: it is not shown again.", "yellow")


@command(app, "deliveries")
def deliveries(
    cli: Cli,
    ref: Ref,
    state: Annotated[str | None, typer.Option("--state", help="pending, delivered or failed.")] = None,
    event: Annotated[str | None, typer.Option("--event", "-e")] = None,
    limit: Limit = 20,
) -> None:
    """List a webhook's messages, the newest first."""
    path = f"/webhooks/{find_id(cli.client, WEBHOOK, ref)}/deliveries"
    cli.show_list(cli.client.items(path, limit=limit, state=state, event=event), DELIVERIES)


@command(app, "redeliver")
def redeliver(cli: Cli, delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="Its id.")]) -> None:
    """Send a message again, under its id."""
    cli.out.one(cli.client.post(f"/webhooks/deliveries/{find_id(cli.client, DELIVERY, delivery)}/redeliver"))


@command(app, "test")
def test(cli: Cli, ref: Ref) -> None:
    """Send a message to try the webhook."""
    cli.out.one(cli.client.post(f"/webhooks/{find_id(cli.client, WEBHOOK, ref)}/test"))

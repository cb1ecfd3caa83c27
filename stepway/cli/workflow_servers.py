"""`stepway workflow-servers` and `stepway workflow-runs`: servers of Python-coded flows that are joined, and their runs."""

from stepway.cli.command import Cli, command, group
from stepway.cli.nouns import Ref, add_delete, add_list, add_show
from stepway.cli.output import Column
from stepway.cli.resolve import WORKFLOW_RUN, WORKFLOW_SERVER, find_id

app = group("workflow-servers", "Servers of Python-coded flows (`stepway serve`) that are joined to the platform.")
runs = group("workflow-runs", "Runs of Python-coded flows, as their servers tell of them.")
COLUMNS = [
    Column("name", "name"), Column("state", "state"), Column("since", "state_since"), Column("workflows", "workflows"),
    Column("url", "url"), Column("id", "id"),
]  # fmt: skip
SERVED = [Column("name", "name"), Column("events", "events"), Column("starts with", "start_schema.title")]
RUNS = [
    Column("handler", "handler_id"), Column("workflow", "workflow"), Column("server", "server"),
    Column("status", lambda run: "cancelling" if _is_cancelling(run) else run["status"]), Column("error", "error"),
    Column("started", "started_at"), Column("ended", "completed_at"), Column("id", "id"),
]  # fmt: skip


def _is_cancelling(run: dict[str, object]) -> bool:
    return run["status"] == "running" and run["cancel"] is not None


add_list(app, WORKFLOW_SERVER, COLUMNS)
add_show(app, WORKFLOW_SERVER)
add_delete(app, WORKFLOW_SERVER, "forget", "forgotten")
add_list(runs, WORKFLOW_RUN, RUNS)
add_show(runs, WORKFLOW_RUN)


@command(app, "workflows")
def workflows(cli: Cli, ref: Ref) -> None:
    """List what a server serves."""
    cli.show_list(cli.client.items(f"/workflow-servers/{find_id(cli.client, WORKFLOW_SERVER, ref)}/workflows"), SERVED)


@command(runs, "cancel")
def cancel(cli: Cli, ref: Ref) -> None:
    """Ask a run's server to cancel it. REF is the id of the run, or of its handler."""
    run = cli.client.post(f"/workflow-runs/{find_id(cli.client, WORKFLOW_RUN, ref)}/cancel")
    if not cli.out.is_table:
        cli.out.data(run)
    if run["server_state"] == "online":
        cli.out.say(f"The server {run['server']} is asked to cancel it: stepway workflow-runs show {run['id']}")
    else:
        cli.out.say(f"The server {run['server']} is {run['server_state']}; it is asked when it is back.", "yellow")

"""`stepway workflows`: the drafts and runs of wizards."""

from typing import Any

from stepway.cli.command import Cli, command, group
from stepway.cli.following import follow
from stepway.cli.nouns import Detach, Id, Yes, add_list, add_show
from stepway.cli.output import Column
from stepway.cli.problems import Refused
from stepway.cli.resolve import WORKFLOW, find_id
from stepway.cli.terminal import confirm_change

app = group("workflows", "The drafts and runs of wizards.")
COLUMNS = [
    Column("id", "workflow_id"), Column("wizard", "workflow_type"), Column("status", "status"),
    Column("step", lambda item: f"{item['current_step']}/{item['total_steps']}"),
    Column("about", lambda item: (item.get("result") or {}).get("name") or _about(item["workflow_steps"])),
    Column("updated", "updated_at"),
]  # fmt: skip


def _about(fields: dict[str, Any]) -> str | None:
    named = [fields.get("endpoint_name"), fields.get("name")]
    named += [one.get("name") for one in fields.values() if isinstance(one, dict)]
    return next((str(one) for one in named if one), None)


add_list(app, WORKFLOW, COLUMNS)
add_show(app, WORKFLOW)


@command(app, "watch")
def watch(cli: Cli, ref: Id) -> None:
    """Follow a workflow's job to its end."""
    _follow(cli, cli.client.get(f"/workflows/{find_id(cli.client, WORKFLOW, ref)}"))


@command(app, "cancel")
def cancel(cli: Cli, ref: Id) -> None:
    """Cancel a draft, or stop and undo a workflow's job."""
    workflow = cli.client.post(f"/workflows/{find_id(cli.client, WORKFLOW, ref)}/cancel")
    if workflow["job"] is not None:
        follow(cli.client, cli.out, workflow["job"]["id"], check=False)
        workflow = cli.client.get(f"/workflows/{workflow['workflow_id']}")
    _end(cli, workflow)


@command(app, "retry")
def retry(cli: Cli, ref: Id, detach: Detach = False) -> None:
    """Run a failed workflow's job again from its failed step."""
    workflow = cli.client.post(f"/workflows/{find_id(cli.client, WORKFLOW, ref)}/retry")
    if detach:
        _end(cli, workflow)
    else:
        _follow(cli, workflow)


@command(app, "delete")
def delete(cli: Cli, ref: Id, yes: Yes = False) -> None:
    """Delete a draft."""
    found = find_id(cli.client, WORKFLOW, ref)
    confirm_change(cli.out, f"Delete the draft {found}?", sure=yes)
    cli.client.delete(f"/workflows/{found}")
    cli.out.say(f"The draft {found} is deleted.")


def _follow(cli: Cli, workflow: dict[str, Any]) -> None:
    if workflow["job"] is None:
        raise Refused("This is a draft: it has no job yet.")
    follow(cli.client, cli.out, workflow["job"]["id"])
    _end(cli, cli.client.get(f"/workflows/{workflow['workflow_id']}"))


def _end(cli: Cli, workflow: dict[str, Any]) -> None:
    if cli.out.is_table:
        cli.out.say(f"The workflow is {workflow['status']}.")
    else:
        cli.out.data(workflow)

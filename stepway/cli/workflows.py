"""`stepway workflows`: the drafts and runs of wizards."""

import sys
from typing import Annotated, Any

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.following import follow
from stepway.cli.nouns import Detach, Id, Yes, add_list, add_show
from stepway.cli.output import Column, size
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

ROOMS = [
    Column("of", "of"), Column("resource", "resource"), Column("limit", "limit"), Column("used", "used"),
    Column("needed", "needed"), Column("fits", "fits"),
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


@command(app, "preview")
def preview(
    cli: Cli,
    ref: Id,
    manifests: Annotated[
        bool, typer.Option("--manifests", help="Print the objects that would be applied to the cluster, as YAML.")
    ] = False,
) -> None:
    """Show what a draft would deploy, and whether the cluster has room for it. Makes nothing."""
    found = cli.client.post(f"/workflows/{find_id(cli.client, WORKFLOW, ref)}/preview")
    if manifests:
        import yaml

        sys.stdout.write(yaml.safe_dump_all(found["manifests"], sort_keys=False, allow_unicode=False))
    elif not cli.out.is_table:
        cli.out.data(found)
    else:
        cli.out.one(_summary(found))
        cli.out.rows([*found["capacity"], *found["quotas"]], ROOMS, empty="")
    if not found["fits"]:
        raise Refused(" ".join(found["problems"]))


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    plan = found["plan"] or {}
    shown = {name: plan[name] for name in ("engine", "replicas", "concurrency", "context_tokens") if name in plan}
    if plan:
        shown["memory of each"] = size(plan["memory_bytes"])
    return {
        "fits": found["fits"], **shown, "room for": found["places"], "notes": found["notes"],
        "objects": [f"{one['kind']}/{one['metadata']['name']}" for one in found["manifests"]],
    }  # fmt: skip


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

"""`stepway models`: the models that are here, their scans, and what may be deployed in spite of them."""

from typing import Annotated, Any

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.following import follow
from stepway.cli.nouns import Detach, Limit, Ref, Yes, add_delete, add_list, add_show
from stepway.cli.output import Column, size
from stepway.cli.resolve import MODEL, Kind, find_id
from stepway.cli.terminal import confirm_change
from stepway.wizards import run_wizard

app = group("models", "Models: what there is, scans, overrides.")
COLUMNS = [
    Column("name", "name"), Column("source", "provider_type"), Column("modality", "modality"), Column("state", "state"),
    Column("scan", "scan_status"), Column("size", lambda model: size(model["size"])), Column("id", "id"),
]  # fmt: skip
SCANS = [
    Column("id", "id"), Column("status", "status"), Column("issues", "total_issues"), Column("by severity", "by_severity"),
    Column("files", "files_scanned"), Column("skipped", "files_skipped"), Column("reason", "reason"),
    Column("ended", "ended_at"),
]  # fmt: skip
OVERRIDES = [
    Column("id", "id"),
    Column("reason", "reason"),
    Column("made", "created_at"),
    Column("revoked", "revoked_at"),
]
OVERRIDE = Kind("scan override", "", ())

add_list(app, MODEL, COLUMNS)
add_show(app, MODEL)
add_delete(app, MODEL)


@command(app, "scan")
def scan(cli: Cli, ref: Ref, detach: Detach = False) -> None:
    """Scan a model's files for what could do harm."""
    workflow = run_wizard(cli.client, "model_security_scan", {"model_id": find_id(cli.client, MODEL, ref)})
    if not detach:
        follow(cli.client, cli.out, workflow["job"]["id"])
        workflow = cli.client.get(f"/workflows/{workflow['workflow_id']}")
    _show_scan(cli, workflow)


def _show_scan(cli: Cli, workflow: dict[str, Any]) -> None:
    result = workflow["result"]
    if not cli.out.is_table:
        cli.out.data(workflow if result is None else result)
    elif result is None:
        cli.out.say(f"The job {workflow['job']['id']} scans it: stepway jobs watch {workflow['job']['id']}")
    else:
        cli.out.one({name: value for name, value in result.items() if name != "issues"})
        if result.get("issues"):
            names = ("severity", "title", "file", "description")
            cli.out.rows(result["issues"], [Column(name, name) for name in names])


@command(app, "scans")
def scans(cli: Cli, ref: Ref, limit: Limit = 20) -> None:
    """The history of a model's scans."""
    path = f"/models/{find_id(cli.client, MODEL, ref)}/scans"
    cli.show_list(cli.client.items(path, limit=limit), SCANS)


@command(app, "override")
def override(
    cli: Cli, ref: Ref, reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.")], yes: Yes = False
) -> None:
    """Let a model's present files be deployed in spite of their scan."""
    found = find_id(cli.client, MODEL, ref)
    confirm_change(cli.out, f"Let the files of {ref} be deployed in spite of their scan?", sure=yes)
    cli.out.one(cli.client.post(f"/models/{found}/scan-overrides", {"reason": reason}))


@command(app, "overrides")
def overrides(cli: Cli, ref: Ref) -> None:
    """The recorded overrides of a model."""
    cli.show_list(cli.client.items(f"/models/{find_id(cli.client, MODEL, ref)}/scan-overrides"), OVERRIDES)


@command(app, "revoke-override")
def revoke_override(cli: Cli, ref: Ref, override_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Take an override back. What has been deployed stays."""
    cli.client.delete(
        f"/models/{find_id(cli.client, MODEL, ref)}/scan-overrides/{find_id(cli.client, OVERRIDE, override_id)}"
    )
    cli.out.say("The override is revoked.")
